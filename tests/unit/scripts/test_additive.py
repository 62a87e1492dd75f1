"""Each kind of change that is not additive is refused with its sentence, and each that is additive passes."""

import copy
from collections.abc import Iterator
from typing import Any

import additive
import pytest
from check_contract import judge

GONE = object()
"""In a change: take the key away."""


def changed(base: Any, *changes: tuple[str, Any]) -> Any:
    """A copy of `base` in which what lies at each path (`a/b/0`) is another."""
    made = copy.deepcopy(base)
    for path, value in changes:
        *way, last = (int(step) if step.isdigit() else step for step in path.split("/"))
        at = made
        for step in way:
            at = at[step]
        if value is GONE:
            del at[last]
        else:
            at[last] = value
    return made


# --- CRDs -------------------------------------------------------------------------------------------------------------

SPEC = {
    "type": "object",
    "required": ["host"],
    "properties": {
        "host": {"type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[a-z.]+$"},
        "port": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535, "default": 25},
        "mode": {"type": "string", "enum": ["none", "verified"]},
        "free": {"type": "string"},
        "count": {"type": "integer"},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "hosts": {"type": "array", "minItems": 0, "maxItems": 8, "items": {"type": "string", "maxLength": 64}},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"]},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "maybe": {"type": "string", "nullable": True},
        "inner": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
    "x-kubernetes-validations": [{"rule": "has(self.host)", "message": "name a host"}],
}
CRD = {
    "metadata": {"name": "hops.mailrail.dev"},
    "spec": {
        "group": "mailrail.dev",
        "scope": "Namespaced",
        "names": {"kind": "Hop", "plural": "hops", "shortNames": ["hop"], "categories": ["mailrail"]},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "selectableFields": [{"jsonPath": ".spec.host"}],
                "schema": {
                    "openAPIV3Schema": {
                        "properties": {
                            "spec": SPEC,
                            "status": {"type": "object", "properties": {"level": {"type": "string"}}},
                        }
                    }
                },
            }
        ],
    },
}
AT = "CRD hops.mailrail.dev v1alpha1: spec"
PROPERTIES = "spec/versions/0/schema/openAPIV3Schema/properties/"


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("properties/free", GONE, ".free: the field is gone"),
        ("properties/inner/properties/a", GONE, ".inner.a: the field is gone"),
        ("properties/port/type", "string", ".port: type 'integer', now 'string'"),
        ("properties/port/format", "int64", ".port: format 'int32', now int64"),
        ("required", ["host", "free"], ".free: the field is now required"),
        ("properties/inner/required", ["a"], ".inner.a: the field is now required"),
        ("properties/port/minimum", 2, ".port: minimum 1, now 2"),
        ("properties/port/maximum", 1024, ".port: maximum 65535, now 1024"),
        ("properties/count/maximum", 9, ".count: maximum none, now 9"),
        ("properties/host/minLength", 4, ".host: minLength 1, now 4"),
        ("properties/host/maxLength", 64, ".host: maxLength 253, now 64"),
        ("properties/hosts/minItems", 1, ".hosts: minItems 0, now 1"),
        ("properties/hosts/maxItems", 4, ".hosts: maxItems 8, now 4"),
        ("properties/hosts/uniqueItems", True, ".hosts: entries must now differ from each other"),
        ("properties/hosts/x-kubernetes-list-type", "set", ".hosts: x-kubernetes-list-type none, now 'set'"),
        ("properties/keyed/x-kubernetes-list-type", GONE, ".keyed: x-kubernetes-list-type 'map', now none"),
        ("properties/keyed/x-kubernetes-list-map-keys", ["b"], ".keyed: x-kubernetes-list-map-keys ['a'], now ['b']"),
        ("properties/hosts/items/maxLength", 32, ".hosts[]: maxLength 64, now 32"),
        ("properties/labels/maxProperties", 4, ".labels: maxProperties none, now 4"),
        ("properties/labels/additionalProperties/maxLength", 9, ".labels{}: maxLength 63, now 9"),
        (
            "properties/labels/additionalProperties",
            False,
            ".labels: fields of any name were taken, now only those that are listed",
        ),
        (
            "properties/open/x-kubernetes-preserve-unknown-fields",
            GONE,
            ".open: x-kubernetes-preserve-unknown-fields",
        ),
        ("properties/maybe/nullable", GONE, ".maybe: null is no longer taken"),
        ("properties/mode/enum", ["verified"], ".mode: no longer taken: none"),
        ("properties/free/enum", ["a"], ".free: no longer taken: all other values"),
        ("properties/host/pattern", "^[a-z]+$", ".host: pattern '^[a-z.]+$', now ^[a-z]+$"),
        ("properties/free/pattern", "^a", ".free: pattern none, now ^a"),
        ("properties/port/default", 587, ".port: default 25, now 587"),
        ("properties/port/default", GONE, ".port: default 25, now none"),
        ("properties/free/default", "x", ".free: default none, now 'x'"),
        ("properties/either/anyOf", [{"type": "string"}], ".either: one of the alternatives is gone or another"),
        (
            "x-kubernetes-validations",
            [{"rule": "self.port > 1"}],
            ": a new rule may refuse what was taken: self",
        ),
    ],
)
def test_a_crd_field_that_takes_less_or_means_something_else_is_refused(path: str, value: Any, sentence: str) -> None:
    (said,) = additive.crd(CRD, changed(CRD, (f"{PROPERTIES}spec/{path}", value)))
    assert said.startswith(AT + sentence)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (f"{PROPERTIES}status/properties/level", GONE, " v1alpha1: status.level: the field is gone"),
        (f"{PROPERTIES}status", GONE, " v1alpha1: status.level: the field is gone"),
        ("spec/group", "example.org", ": group mailrail.dev, now example.org"),
        ("spec/scope", "Cluster", ": scope Namespaced, now Cluster"),
        ("spec/names/plural", "hopses", ": plural hops, now hopses"),
        ("spec/names/shortNames", [], ": shortNames ['hop'], now []"),
        ("spec/versions/0/served", False, ": version v1alpha1 is no longer served"),
        ("spec/versions/0/name", "v1", ": version v1alpha1 is no longer served"),
        ("spec/versions/0/selectableFields", [], " v1alpha1: objects can no longer be selected by .spec.host"),
        ("spec/versions/0/subresources", {}, " v1alpha1: subresource status is gone"),
    ],
)
def test_a_crd_that_is_found_or_written_otherwise_is_refused(path: str, value: Any, sentence: str) -> None:
    said = next(additive.crd(CRD, changed(CRD, (path, value))))
    assert said.startswith("CRD hops.mailrail.dev" + sentence)


@pytest.mark.parametrize(
    "changes",
    [
        [("properties/new", {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}})],
        [("required", ["host", "new"]), ("properties/new", {"type": "string", "default": "x"})],
        [("required", [])],
        [("properties/port/minimum", 0), ("properties/port/maximum", GONE)],
        [("properties/count/type", "number")],
        [("properties/mode/enum", ["none", "required", "verified"])],
        [("properties/mode/enum", GONE)],
        [("properties/host/pattern", GONE), ("properties/host/description", "a name")],
        [("properties/free/nullable", True)],
        [("properties/either/anyOf", [{"type": "string"}, {"type": "integer"}, {"type": "array"}])],
        [("x-kubernetes-validations", [])],
    ],
)
def test_a_crd_that_takes_more_passes(changes: list[tuple[str, Any]]) -> None:
    wider = changed(CRD, *((f"{PROPERTIES}spec/{path}", value) for path, value in changes))
    assert list(additive.crd(CRD, wider)) == []


def test_a_further_version_of_a_crd_passes() -> None:
    more = changed(CRD)
    more["spec"]["versions"].append(changed(more["spec"]["versions"][0], ("name", "v1"), ("served", True)))
    assert list(additive.crd(CRD, more)) == []


# --- values -----------------------------------------------------------------------------------------------------------

VALUES = {"queue": {"replicaCount": 2, "settings": {}}, "ports": [25, 465]}


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("queue/replicaCount", GONE, "values.queue.replicaCount: the value is gone"),
        ("queue/replicaCount", 3, "values.queue.replicaCount: default 2, now 3"),
        ("queue/settings", None, "values.queue.settings: default {}, now None"),
        ("ports", [25], "values.ports: default [25, 465], now [25]"),
        ("queue", [], "values.queue: default {'replicaCount': 2, 'settings': {}}, now []"),
    ],
)
def test_a_value_that_is_gone_or_has_another_default_is_refused(path: str, value: Any, sentence: str) -> None:
    assert list(additive.defaults(VALUES, changed(VALUES, (path, value)))) == [sentence]


def test_a_further_value_passes() -> None:
    assert list(additive.defaults(VALUES, changed(VALUES, ("queue/new", {"a": 1}), ("more", 1)))) == []


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("properties/a", GONE, "values.schema.a: the field is gone"),
        ("properties/a/type", "string", "values.schema.a: type ['string', 'null'], now 'string'"),
        ("additionalProperties", False, "values.schema: fields of any name were taken, now only those that are listed"),
        ("allOf", [{"if": 1}], "values.schema: a new rule may refuse what was taken: {'if': 1}"),
        ("properties/a/const", 1, "values.schema.a: const none, now 1"),
        ("propertyNames", {"maxLength": 9}, "values.schema: propertyNames none, now {'maxLength': 9}"),
        ("then", {"required": ["a"]}, "values.schema: then none, now {'required': ['a']}"),
        ("properties/a/anyOf", [{}], "values.schema.a: a new rule may refuse what was taken: anyOf [{}]"),
    ],
)
def test_a_schema_of_values_that_takes_less_is_refused(path: str, value: Any, sentence: str) -> None:
    base = {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}
    assert list(additive.schema(base, changed(base, (path, value)), "values.schema")) == [sentence]


# --- the database -----------------------------------------------------------------------------------------------------

DATABASE = {
    "migrations": {"queue/0001_queue": "aa"},
    "schemas": {
        "queue": {
            "tables": {
                "message": {
                    "columns": {
                        "id": {"type": "uuid", "null": False, "default": None},
                        "size": {"type": "bigint", "null": False, "default": "0"},
                        "account": {"type": "text", "null": True, "default": None},
                    },
                    "constraints": {"message_pkey": "PRIMARY KEY (id)", "positive": "CHECK (size >= 0)"},
                    "indexes": {
                        "message_pkey": "CREATE UNIQUE INDEX message_pkey ON message (id)",
                        "by_size": "CREATE INDEX by_size ON message (size)",
                    },
                }
            },
            "sequences": {"block": "bigint from 1 by 1000"},
            "functions": {"next()": "bigint"},
        }
    },
}
TABLE = "schemas/queue/tables/message/"


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("migrations/queue\t0001_queue", "bb", "migration queue/0001_queue: it was changed"),
        ("migrations/queue\t0001_queue", GONE, "migration queue/0001_queue: the file is gone"),
        ("schemas/queue", GONE, "schema queue is gone"),
        ("schemas/queue/tables/message", GONE, "table queue.message is gone"),
        (TABLE + "columns/size", GONE, "column queue.message.size is gone"),
        (TABLE + "columns/size/type", "integer", "column queue.message.size: type bigint, now integer"),
        (TABLE + "columns/account/null", False, "column queue.message.account: it must not be NULL any more"),
        (TABLE + "columns/size/null", True, "column queue.message.size: it may be NULL now"),
        (TABLE + "columns/size/default", "1", "column queue.message.size: default 0, now 1"),
        (TABLE + "columns/size/default", None, "column queue.message.size: default 0, now None"),
        (
            TABLE + "columns/new",
            {"type": "text", "null": False, "default": None},
            "column queue.message.new: it is new and NOT NULL without a default",
        ),
        (TABLE + "constraints/new", "CHECK (size < 9)", "constraint new of queue.message is new"),
        (
            TABLE + "constraints/positive",
            "CHECK (size > 0)",
            "constraint of queue.message: positive: CHECK",
        ),
        (TABLE + "constraints/message_pkey", "PRIMARY KEY (id, size)", "constraint of queue.message: message_pkey"),
        (TABLE + "constraints/message_pkey", GONE, "constraint of queue.message: message_pkey is gone"),
        (TABLE + "indexes/by_size", GONE, "index of queue.message: by_size is gone"),
        (TABLE + "indexes/by_size", "CREATE INDEX by_size ON message (id)", "index of queue.message: by_size: CREATE"),
        (TABLE + "indexes/one", "CREATE UNIQUE INDEX one ON message (account)", "index one of queue.message is new"),
        ("schemas/queue/sequences/block", "bigint from 1 by 100", "sequence queue.block: bigint from 1 by 1000, now"),
        ("schemas/queue/functions/next()", GONE, "function queue.next() is gone"),
    ],
)
def test_a_schema_on_which_older_processes_fail_is_refused(path: str, value: Any, sentence: str) -> None:
    (said,) = additive.database(slashes(DATABASE), slashes(changed(tabs(DATABASE), (path, value))))
    assert said.startswith(sentence)


def test_what_older_processes_do_not_notice_passes() -> None:
    more = changed(
        DATABASE,
        (TABLE + "columns/tag", {"type": "text", "null": True, "default": None}),
        (TABLE + "columns/purpose", {"type": "smallint", "null": False, "default": "0"}),
        (TABLE + "indexes/by_account", "CREATE INDEX by_account ON message (account)"),
        ("schemas/queue/tables/job", {"columns": {}, "constraints": {"p": "PRIMARY KEY (id)"}, "indexes": {}}),
        ("schemas/access", {"tables": {}, "sequences": {}, "functions": {}}),
        ("migrations/other", "cc"),
    )
    assert list(additive.database(DATABASE, more)) == []


def tabs(base: Any) -> Any:
    """`base`, with the labels of migrations such that paths can name them."""
    return {**base, "migrations": {label.replace("/", "\t"): sum_ for label, sum_ in base["migrations"].items()}}


def slashes(base: Any) -> Any:
    """The labels as they are."""
    return {**base, "migrations": {label.replace("\t", "/"): sum_ for label, sum_ in base["migrations"].items()}}


# --- metrics, commands, settings --------------------------------------------------------------------------------------

METRICS = {"series": {"mail_total": {"type": "counter", "labels": ["kind", "result"]}}, "alerts": ["MailrailDown"]}


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("series/mail_total", GONE, "series mail_total is gone"),
        ("series/mail_total/type", "gauge", "series mail_total: type counter, now gauge"),
        ("series/mail_total/labels", ["kind"], "series mail_total: labels kind, result, now kind"),
        (
            "series/mail_total/labels",
            ["kind", "result", "x"],
            "series mail_total: labels kind, result, now kind, result, x",
        ),
        ("alerts", [], "alert MailrailDown is gone"),
    ],
)
def test_a_series_that_queries_of_users_no_longer_find_is_refused(path: str, value: Any, sentence: str) -> None:
    assert list(additive.metrics(METRICS, changed(METRICS, (path, value)))) == [sentence]


def test_a_further_series_and_alert_pass() -> None:
    more = changed(METRICS, ("series/new", {"type": "gauge", "labels": []}), ("alerts", ["MailrailDown", "New"]))
    assert list(additive.metrics(METRICS, more)) == []


OPTION = {"takes": "str", "choices": ["a", "b"], "required": False, "environment": "MAILRAIL_X", "default": "a"}
COMMANDS = {
    "mailrail show": {
        "arguments": [{"name": "id", "required": True, "many": True}, {"name": "to", "required": False, "many": False}],
        "options": {"--form": OPTION},
    }
}
SHOW = "mailrail show/"


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("mailrail show", GONE, "command `mailrail show` is gone"),
        (SHOW + "options/--form", GONE, "option `mailrail show --form` is gone"),
        (SHOW + "options/--form/takes", "nothing", "option `mailrail show --form`: takes 'str', now 'nothing'"),
        (
            SHOW + "options/--form/environment",
            "Y",
            "option `mailrail show --form`: environment 'MAILRAIL_X', now 'Y'",
        ),
        (SHOW + "options/--form/default", "b", "option `mailrail show --form`: default 'a', now 'b'"),
        (SHOW + "options/--form/choices", ["a"], "option `mailrail show --form`: b is no longer taken"),
        (SHOW + "options/--form/required", True, "option `mailrail show --form` is now required"),
        (SHOW + "options/--new", {**OPTION, "required": True}, "option `mailrail show --new` is now required"),
        (SHOW + "arguments/1", GONE, "argument to of `mailrail show` is gone"),
        (SHOW + "arguments/0/many", False, "argument id of `mailrail show`: only one is taken now"),
        (SHOW + "arguments/1/required", True, "argument to of `mailrail show` is now required"),
    ],
)
def test_a_command_that_scripts_can_no_longer_call_is_refused(path: str, value: Any, sentence: str) -> None:
    assert list(additive.commands(COMMANDS, changed(COMMANDS, (path, value)))) == [sentence]


def test_further_commands_options_and_choices_pass() -> None:
    more = changed(
        COMMANDS,
        (SHOW + "options/--new", OPTION),
        (SHOW + "options/--form/choices", ["a", "b", "c"]),
        ("mailrail top", {"arguments": [], "options": {}}),
    )
    assert list(additive.commands(COMMANDS, more)) == []


SETTINGS = {"queue": {"MAILRAIL_QUEUE_LINGER": {"type": "float", "default": "0.001"}}}


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("queue", GONE, "service queue is gone, with its settings"),
        ("queue/MAILRAIL_QUEUE_LINGER", GONE, "setting MAILRAIL_QUEUE_LINGER is gone"),
        ("queue/MAILRAIL_QUEUE_LINGER/type", "int", "setting MAILRAIL_QUEUE_LINGER: type 'float', now 'int'"),
        ("queue/MAILRAIL_QUEUE_LINGER/default", "1", "setting MAILRAIL_QUEUE_LINGER: default '0.001', now '1'"),
    ],
)
def test_a_setting_that_is_gone_or_means_something_else_is_refused(path: str, value: Any, sentence: str) -> None:
    assert list(additive.settings(SETTINGS, changed(SETTINGS, (path, value)))) == [sentence]


def test_a_further_setting_passes() -> None:
    more = changed(SETTINGS, ("queue/MAILRAIL_QUEUE_NEW", {"type": "int", "default": "1"}), ("dmarc", {}))
    assert list(additive.settings(SETTINGS, more)) == []


# --- what is accepted -------------------------------------------------------------------------------------------------


def entries(*pairs: tuple[str, str]) -> Iterator[dict[str, str]]:
    for what, reason in pairs:
        yield {"what": what, "reason": reason}


@pytest.mark.parametrize(
    ("accepted", "fragments", "left"),
    [
        ([], [], ["a is gone"]),
        ([("a is gone", "nobody has it")], ["x.changed.md"], []),
        ([("a is gone", "nobody has it")], ["x.added.md"], ["accepted.toml: users are not told"]),
        ([("a is gone", " ")], ["x.changed.md"], ["accepted.toml: the entry has no reason: a is gone"]),
        ([("b is gone", "r")], ["x.changed.md"], ["a is gone", "accepted.toml: nothing differs so"]),
    ],
)
def test_only_what_is_accepted_with_a_reason_and_told_to_users_passes(
    accepted: list[tuple[str, str]], fragments: list[str], left: list[str]
) -> None:
    said = judge(["a is gone"], list(entries(*accepted)), fragments)
    assert len(said) == len(left)
    assert all(one.startswith(begin) for one, begin in zip(said, left, strict=True))


# --- documents --------------------------------------------------------------------------------------------------------

DOCUMENTS = {
    "Hop": {
        "type": "object",
        "required": ["host"],
        "properties": {
            "host": {"type": "string"},
            "kind": {"$ref": "#/$defs/HopKind"},
            "port": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
        },
    },
    "HopKind": {"type": "string", "enum": ["smtp", "lmtp"]},
}


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("HopKind", GONE, "HopKind: it is gone"),
        ("HopKind/enum", ["smtp"], "HopKind: no longer taken: lmtp"),
        ("Hop/properties/host", GONE, "Hop.host: the field is gone"),
        ("Hop/properties/host/type", "integer", "Hop.host: type 'string', now 'integer'"),
        ("Hop/properties/kind/$ref", "#/$defs/Other", "Hop.kind: $ref '#/$defs/HopKind', now #/$defs/Other"),
        ("Hop/properties/port/default", 25, "Hop.port: default None, now 25"),
        ("Hop/required", ["host", "kind"], "Hop.kind: the field is now required"),
        (
            "Hop/properties/pair/prefixItems",
            [{"type": "string"}],
            "Hop.pair: prefixItems [{'type': 'string'}, {'type': 'integer'}], now [{'type': 'string'}]",
        ),
    ],
)
def test_a_stored_document_that_the_new_version_reads_otherwise_is_refused(
    path: str, value: Any, sentence: str
) -> None:
    assert sentence in list(additive.documents(DOCUMENTS, changed(DOCUMENTS, (path, value))))


def test_further_documents_fields_and_words_pass() -> None:
    more = changed(
        DOCUMENTS,
        ("Hop/properties/new", {"type": "string", "default": ""}),
        ("HopKind/enum", ["smtp", "lmtp", "socks"]),
        ("New", {"type": "object"}),
    )
    assert list(additive.documents(DOCUMENTS, more)) == []
