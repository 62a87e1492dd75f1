"""Which keys of a revision sign mail of which domain."""

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailrail.core.dkim.rotation import KeyStage
from mailrail.core.dkim.signers import Signers
from mailrail.core.revision.revision import DkimKey, Domain, DomainDelivery, ObjectRef, Revision, SecretRef

from testkit.signed_mail import ed25519_key, rsa_key

SECRETS: dict[str, bytes] = {}


def key(selector: str, stage: KeyStage = KeyStage.SIGNING) -> DkimKey:
    private = ed25519_key() if selector.startswith("e") else rsa_key()
    ref = SecretRef("mail", "dkim", selector, "d", "k")
    SECRETS[ref.path] = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return DkimKey(selector, "ed25519-sha256" if selector.startswith("e") else "rsa-sha256", ref, stage)


def domain(name: str, *keys: DkimKey, also: tuple[str, ...] = ()) -> Domain:
    return Domain(ObjectRef("MailDomain", "mail", name), name, DomainDelivery.NONE, dkim=keys, also_sign_as=also)


def signers(*domains: Domain, before: Signers | None = None, said: list[str] | None = None) -> Signers:
    def report(domain: str, selector: str, why: str) -> None:
        if said is not None:
            said.append(f"{domain} {selector} {why}")

    return Signers(Revision(domains=domains), SECRETS, report, before)


def names(found: Signers, domain: str) -> list[str]:
    return [str(each.name) for each in found.of(domain)]


def test_the_keys_that_sign_are_those_of_the_domain_and_of_others_that_sign_too_DKIM_08a() -> None:
    found = signers(
        domain(
            "example.org", key("old", KeyStage.RETIRED), key("r"), key("e"), also=("provider.example", "example.org")
        ),
        domain("provider.example", key("p")),
    )
    own = ["r._domainkey.example.org", "e._domainkey.example.org"]
    assert names(found, "example.org") == [*own, "p._domainkey.provider.example"]
    assert names(found, "sub.example.org") == []
    assert found.has_keys("example.org")
    assert not found.has_keys("example.net")
    assert not signers(domain("example.net"))


def test_a_host_name_of_ours_is_signed_for_by_the_nearest_domain_at_or_above_it_DKIM_10a_DMRC_21() -> None:
    found = signers(domain("example.org", key("r")), domain("mx.example.org", key("new", KeyStage.NEW)), domain("org"))
    assert [str(each.name) for each in found.aligned("mx.example.org")] == ["r._domainkey.example.org"]
    assert [str(each.name) for each in found.aligned("Example.org.")] == ["r._domainkey.example.org"]
    assert found.aligned("mx.notexample.org") == ()
    assert found.aligned("localhost") == ()


def test_a_key_that_cannot_be_read_is_told_of_once_and_the_others_sign() -> None:
    said: list[str] = []
    bad = DkimKey("bad", "rsa-sha256", SecretRef("mail", "dkim", "bad", "d", "k"))
    found = signers(domain("example.org", bad, key("r")), domain("ed.example", key("e")), said=said)
    assert names(found, "example.org") == names(found, "example.org") == ["r._domainkey.example.org"]
    assert found.of("ed.example") == found.aligned("ed.example") == ()
    assert len(said) == 2
    assert said[0].startswith("example.org bad its private key was not delivered")
    assert "Ed25519" in said[1]


def test_a_key_is_read_again_only_when_it_has_changed() -> None:
    first = signers(domain("example.org", key("r")))
    (before,) = first.of("example.org")
    (same,) = signers(domain("example.org", key("r")), before=first).of("example.org")
    assert same is before
    moved = DkimKey("r", "rsa-sha256", SecretRef("mail", "dkim", "r", "other", "k"))
    SECRETS[moved.private_key.path] = SECRETS[key("r").private_key.path]
    (after,) = signers(domain("example.org", moved), before=first).of("example.org")
    assert after is not before
