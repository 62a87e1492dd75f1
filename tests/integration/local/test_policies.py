"""`mailrail local` serves the MTA-STS policies of its domains."""

import urllib.error
import urllib.request
from typing import Any

from mailrail.core.mtasts.record import StsRecord, read_records

from testkit.conditions import wait_until
from testkit.local import installation


def test_the_policy_of_a_domain_is_served_from_the_moment_that_its_document_says_so_STS_23a() -> None:
    with installation() as local:

        def served() -> str:
            url = f"http://127.0.0.1:{local.port(1082)}/.well-known/mta-sts.txt"
            request = urllib.request.Request(url, headers={"Host": "mta-sts.example.org"})
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    body: bytes = answer.read()
                    return body.decode()
            except urllib.error.HTTPError as error:
                with error:
                    return str(error.code)
            except OSError as error:  # it does not listen yet
                return str(error)

        wait_until(lambda: served() == "404", what=served)  # until then there is no configuration: 503
        (file,) = [f for f in local.resources.iterdir() if "domainName: example.org" in f.read_text(encoding="utf-8")]
        text = file.read_text(encoding="utf-8")
        said = "  mtaSts: {mode: Enforce, maxAgeSeconds: 86400, mx: [mx.example.org]}\n"
        file.write_text(text.replace("  domainName: example.org\n", "  domainName: example.org\n" + said), "utf-8")
        policy = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.org\r\nmax_age: 86400\r\n"
        wait_until(lambda: served() == policy, what=served)

        def told() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = local.ask("config", "mta-sts")
            return found

        # The command knows of the process what it reports, each two seconds and at each change.
        (row,) = wait_until(lambda: told() if told()[0]["record"] is not None else None)
        assert (row["domain"], row["mode"], row["policy"]) == ("example.org", "enforce", policy)
        name, _, record = row["record"].partition(" IN TXT ")
        assert name == "_mta-sts.example.org."
        assert isinstance(read_records([[record.strip('"').encode()]]), StsRecord)
        assert row["record"] in local.run("config", "mta-sts").stdout
