"""A trial over gRPC: documents over what is accepted, and the store is as before (DIF-02, DIF-07)."""

import json
from pathlib import Path

import grpc
import pytest
from integration.config.conftest import GATEWAY, config_service, publisher, route, sources

from mailrail.core.revision.revision import decode
from mailrail.pb.config.v1 import config_pb2 as pb
from mailrail_config import trial

ALL = 120.0


def _file(text: str) -> pb.TrialFile:
    return pb.TrialFile(name="edited.yaml", content=text.encode())


async def test_a_trial_answers_both_configurations_and_publishes_nothing_DIF_02(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service:
        await publisher(keys_dir, service.target).publish(sources(route("a", "a.example")))
        async with service.stub() as stub:
            before = await stub.ListRevisions(pb.ListRevisionsRequest())
            request = pb.TrialRequest(files=[_file(route("b", "b.example"))])
            answer = await stub.Trial(request, timeout=ALL)
            assert await stub.ListRevisions(pb.ListRevisionsRequest()) == before
            head = await stub.GetRevision(pb.GetRevisionRequest())
        assert not answer.bad
        assert json.loads(answer.diagnostics) == []
        base, candidate = decode(answer.base), decode(answer.candidate)
        assert base.global_routes == decode(head.body).global_routes
        assert sum(len(level.rules) for level in candidate.global_routes) == 2
        assert len(candidate.transports) == len(base.transports) == 1, "its Secret counts as unchanged"


async def test_bad_documents_are_named_and_no_password_comes_back_DIF_07(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service:
        await publisher(keys_dir, service.target).publish(sources())
        async with service.stub() as stub:
            text = GATEWAY.replace("looking-glass", "jabberwocky").replace(
                "kind: MailTransport", "kind: MailTransporter"
            )
            answer = await stub.Trial(pb.TrialRequest(files=[_file(text)]), timeout=ALL)
        assert answer.bad
        assert "edited.yaml" in answer.diagnostics
        assert b"jabberwocky" not in answer.SerializeToString()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.TrialRequest(files=[pb.TrialFile(content=b"x" * (1024 * 1024 + 1))]), "more than 1024 KiB"),
        (pb.TrialRequest(mode=7), "merge, replace or delete"),  # type: ignore[arg-type]
    ],
)
async def test_what_cannot_be_tried_is_refused_DIF_07(database: str, request_: pb.TrialRequest, words: str) -> None:
    async with config_service(database) as service, service.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError, match=words) as refused:
            await stub.Trial(request_, timeout=ALL)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_trial_that_takes_too_long_is_ended_and_the_next_one_has_its_turn(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with config_service(database) as service, service.stub() as stub:
        monkeypatch.setattr(trial, "SECONDS", 0.0)
        with pytest.raises(grpc.aio.AioRpcError, match="in parts") as refused:
            await stub.Trial(pb.TrialRequest(), timeout=ALL)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        monkeypatch.setattr(trial, "SECONDS", ALL)
        assert not (await stub.Trial(pb.TrialRequest(), timeout=ALL)).bad
