"""The store: what watches and lists say, in whatever order they say it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.revision.revision import ObjectRef
from mailrail_operator.store import ObjectStore, referenced_secrets


def body(name: str, version: int = 1, generation: int = 1, uid: str = "", **metadata: Any) -> dict[str, Any]:
    return {
        "kind": "MailRoute",
        "metadata": {
            "name": name,
            "namespace": "mail",
            "uid": uid or f"uid-{name}",
            "generation": generation,
            "resourceVersion": str(version),
            **metadata,
        },
        "spec": {},
    }


def ref(name: str) -> ObjectRef:
    return ObjectRef("MailRoute", "mail", name)


def changed(store: ObjectStore) -> bool:
    """Whether a round is due; asking settles it."""
    was = store.changed.is_set()
    store.changed.clear()
    return was


def test_a_new_object_and_a_new_generation_are_changes_and_a_status_write_is_none() -> None:
    store = ObjectStore()
    store.put(body("a"))
    assert changed(store)
    store.put(body("a", 2))
    assert not changed(store)
    store.put(body("a", 3, generation=2))
    assert changed(store)


def test_an_older_version_of_an_object_is_no_news() -> None:
    store = ObjectStore()
    store.put(body("a", 5, generation=2))
    store.put(body("a", 4, generation=1))
    seen = store.get(ref("a"))
    assert seen is not None
    assert seen.generation == 2


def test_a_version_that_is_no_number_compares_as_the_oldest() -> None:
    store = ObjectStore()
    store.put(body("a") | {"metadata": body("a")["metadata"] | {"resourceVersion": "²"}})
    assert store.replace("MailRoute", None, [], "²") == {ref("a")}


def test_an_object_that_is_being_deleted_is_gone() -> None:
    store = ObjectStore()
    store.put(body("a"))
    store.put(body("a", 2, deletionTimestamp="2026-01-01T00:00:00Z"))
    assert len(store) == 0


def test_a_deletion_of_a_former_object_leaves_the_one_that_was_made_anew() -> None:
    store = ObjectStore()
    store.put(body("a", 5, uid="second"))
    store.remove(ref("a"), "first")
    assert store.get(ref("a")) is not None


def test_a_list_removes_what_it_lacks_the_relist_trap() -> None:
    store = ObjectStore()
    for name in ("a", "b"):
        store.put(body(name))
    changed(store)
    assert store.replace("MailRoute", None, [body("a")], "9") == {ref("b")}
    assert changed(store)
    assert store.count("MailRoute") == 1


def test_a_list_does_not_remove_what_is_newer_than_it() -> None:
    store = ObjectStore()
    store.put(body("new", 12))
    assert store.replace("MailRoute", None, [], "10") == set()
    assert store.count("MailRoute", "mail") == 1


def test_a_list_does_not_bring_back_what_was_deleted_while_it_was_read() -> None:
    store = ObjectStore()
    store.put(body("a", 3))
    store.remove(ref("a"), "uid-a")
    store.replace("MailRoute", None, [body("a", 3)], "10")
    assert len(store) == 0


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    store = ObjectStore()
    store.put(body("a"))
    elsewhere = body("b")
    elsewhere["metadata"]["namespace"] = "other"
    store.put(elsewhere)
    assert store.replace("MailRoute", "mail", [], "9") == {ref("a")}
    assert store.count("MailRoute", "other") == 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=12))
def test_a_list_after_any_events_gives_exactly_what_there_is(events: list[tuple[str, bool]]) -> None:
    store, there, uids = ObjectStore(), {}, {"a": 0, "b": 0}
    for version, (name, exists) in enumerate(events, start=1):
        if exists:
            uids[name] += name not in there
            there[name] = body(name, version, uid=f"{name}{uids[name]}")
            if version % 3:  # every third event is lost in a gap
                store.put(there[name])
        elif name in there:
            gone = there.pop(name)
            if version % 3:
                store.remove(ref(name), gone["metadata"]["uid"])
    store.replace("MailRoute", None, list(there.values()), str(len(events) + 1))
    assert {r.name: o.uid for r, o in store.objects().items()} == {n: b["metadata"]["uid"] for n, b in there.items()}


def test_every_form_of_a_reference_to_a_secret_is_found() -> None:
    spec = {
        "listeners": [{"tls": {"certificateSecretRef": {"name": "tls"}}}],
        "submission": {"auth": {"secretRef": {"name": "login"}}, "tls": {"caSecretRef": {"name": "ca", "key": "x"}}},
        "dkim": [{"privateKeySecretRef": {"name": "dkim"}}],
        "transportRef": {"name": "not-a-secret"},
        "secretRef": "nonsense",
    }
    assert set(referenced_secrets("mail", spec)) == {("mail", n) for n in ("tls", "login", "ca", "dkim")}
