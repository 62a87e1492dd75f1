"""The Record stream: batches in, acknowledgements out."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from mailrail.pb.dmarc.v1 import record_pb2, record_pb2_grpc
from mailrail_dmarc.app import DmarcProcess
from mailrail_dmarc.record import BatchUnreadable
from mailrail_dmarc.store.connection import DATABASE_ERRORS

Context = grpc.aio.ServicerContext[Any, Any]

_LOOK: Final = 0.5  # seconds between looks whether the process stops


class RecordServicer(record_pb2_grpc.RecordServiceServicer):
    """One batch of a stream at a time: a caller has few, and waits for its answers."""

    def __init__(self, process: DmarcProcess) -> None:
        self._process = process

    async def Record(self, requests: Any, context: Context) -> AsyncIterator[record_pb2.RecordResponse]:
        """See record.proto. UNAVAILABLE while Postgres is away: the batch is not stored, or nobody knows."""
        process = self._process
        source = aiter(requests)
        reading = asyncio.ensure_future(anext(source, None))
        try:
            while True:
                await asyncio.wait((reading,), timeout=_LOOK)
                if not reading.done():
                    if process.stopping.is_set():
                        yield record_pb2.RecordResponse(go_away=True)
                        return
                    continue
                request = reading.result()
                if request is None:
                    return
                try:
                    done = await process.recorder.record(request, datetime.now(UTC))
                except BatchUnreadable as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
                except DATABASE_ERRORS as error:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, f"Postgres: {str(error).strip()[:300]}")
                reading = asyncio.ensure_future(anext(source, None))
                yield record_pb2.RecordResponse(batch_ids=[done])
        finally:
            reading.cancel()
