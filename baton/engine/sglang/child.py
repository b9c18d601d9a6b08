"""The engine's process: `python -m baton.engine.sglang.child FD ARGUMENTS`.

SGLang's Engine wants the main thread of a process, starts processes of its own and kills all of
them, this one included, when one of them fails. So it lives here, apart from the service, and
speaks over one inherited socket (frames.py). It ends when the socket closes.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import msgspec

from baton.engine.sglang import frames
from baton.engine.sglang.streams import Increments
from baton.engine.sglang.subscriber import follow_cache

logger = logging.getLogger(__name__)

LOAD_EVERY_S = 0.04
"""How often the figures are read; reading is a look into shared memory."""


ABORT_RETRY_S = 0.005


class Server:
    """Runs commands on one engine and reports what comes of them."""

    def __init__(self, engine: Any, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._running: dict[int, asyncio.Task[None]] = {}

    async def serve(self, reader: asyncio.StreamReader, tasks: asyncio.TaskGroup) -> None:
        """Serves until the worker hangs up."""
        while (command := await frames.read_command(reader)) is not None:
            if isinstance(command, frames.Abort):
                tasks.create_task(self._abort(command.number))
            else:
                task = tasks.create_task(self._run(command))
                self._running[command.number] = task
                task.add_done_callback(partial(self._forget, command.number))

    def _forget(self, number: int, _: "asyncio.Task[None]") -> None:
        del self._running[number]

    async def report_load(self) -> None:
        """Sends the scheduler's figures whenever they changed."""
        last: dict[str, Any] = {}
        while True:
            snapshots = await self._engine.tokenizer_manager.get_loads()
            if snapshots and (snapshot := _merged([it.to_dict() for it in snapshots])) != last:
                last = snapshot
                self.report(frames.Load(snapshot))
            await asyncio.sleep(LOAD_EVERY_S)

    def report(self, message: frames.Report) -> None:
        """Sends one report."""
        frames.write(self._writer, message)

    async def _abort(self, number: int) -> None:
        """Stops a request, once the engine's front knows it; its last output still comes."""
        manager, rid = self._engine.tokenizer_manager, _rid(number)
        while number in self._running:
            if rid in manager.rid_to_state:
                manager.abort_request(rid=rid)
                return
            await asyncio.sleep(ABORT_RETRY_S)

    async def _run(self, command: frames.Generate) -> None:
        new = Increments()
        try:
            outputs: AsyncIterator[Mapping[str, Any]] = await self._engine.async_generate(
                **command.arguments, rid=_rid(command.number), stream=True
            )
            async for output in outputs:
                self._report_output(command.number, new, output)
        except (ValueError, TypeError) as error:
            self.report(frames.Failed(command.number, str(error), is_invalid=True))
        except Exception as error:  # whatever an engine's front can raise
            logger.exception("request failed number=%d", command.number)
            self.report(frames.Failed(command.number, repr(error), is_invalid=False))

    def _report_output(self, number: int, new: Increments, output: Mapping[str, Any]) -> None:
        token_ids, logprobs = new.take(output)
        meta = output["meta_info"]
        finish = meta.get("finish_reason")
        if token_ids or finish is not None:
            self.report(frames.Output(number, token_ids, logprobs, finish, _kept(meta)))


def _kept(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the times and counts of an output, without what is long."""
    return {
        name: value
        for name, value in meta.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _rid(number: int) -> str:
    return f"baton-{number}"


def _merged(snapshots: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds up the figures of all data-parallel ranks; shares and times are the first one's."""
    merged = {k: v for k, v in snapshots[0].items() if k != "timestamp"}
    for snapshot in snapshots[1:]:
        for name, value in snapshot.items():
            if name.startswith(("num_", "max_", "total_")):
                merged[name] = merged.get(name, 0) + value
    return merged


def make_engine(arguments: Mapping[str, Any]) -> Any:
    """Returns a started engine. Raises ValueError for arguments that this release lacks."""
    import sglang
    from sglang.srt.server_args import ServerArgs

    fields = getattr(ServerArgs, "__struct_fields__", None) or ServerArgs.__dataclass_fields__
    unknown = sorted(set(arguments) - set(fields))
    if unknown:
        raise ValueError(f"SGLang {sglang.__version__} has no argument {', '.join(unknown)}")
    return sglang.Engine(**arguments)


def _ready(engine: Any) -> frames.Ready:
    info = engine._scheduler_init_result.scheduler_infos[0]
    arguments = engine.server_args
    model = engine.tokenizer_manager.model_config
    return frames.Ready(
        kv_tokens=int(info["max_total_num_tokens"]),
        kv_dtype=str(arguments.kv_cache_dtype),
        context_length=int(model.context_len),
        device=str(arguments.device),
        bootstrap_port=int(arguments.disaggregation_bootstrap_port or 0),
    )


async def _follow(engine: Any, line: socket.socket) -> None:
    """Computes for another machine's engine until the worker hangs up or a part of it ends."""
    reader, writer = await asyncio.open_connection(sock=line)
    started = engine._scheduler_init_result
    info = started.scheduler_infos[0]
    arguments = engine.server_args
    frames.write(
        writer,
        frames.Ready(
            kv_tokens=int(info["max_total_num_tokens"]),
            kv_dtype=str(arguments.kv_cache_dtype),
            context_length=0,  # the first machine's to say
            device=str(arguments.device),
            bootstrap_port=0,
        ),
    )
    parts = asyncio.ensure_future(asyncio.to_thread(started.block_until_scheduler_exits))
    hung_up = asyncio.ensure_future(frames.read_command(reader))
    await asyncio.wait((parts, hung_up), return_when=asyncio.FIRST_COMPLETED)
    engine.shutdown()  # which ends the parts that the thread still waits for


async def _serve(engine: Any, launch: frames.Launch, line: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=line)
    server = Server(engine, writer)
    engine.tokenizer_manager.auto_create_handle_loop()
    server.report(_ready(engine))
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            if launch.events_endpoint:
                following = follow_cache(
                    launch.events_endpoint, launch.replay_endpoint, server.report
                )
                tasks.create_task(following)
            tasks.create_task(server.report_load())
            await server.serve(reader, tasks)
            raise asyncio.CancelledError


def main() -> None:
    """Makes the engine and serves it until the worker hangs up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    line = socket.socket(fileno=int(sys.argv[1]))
    launch = msgspec.json.decode(sys.argv[2], type=frames.Launch)
    is_follower = int(launch.arguments.get("node_rank", 0)) > 0
    if is_follower:
        # SGLang would wait inside the constructor for ever.
        os.environ["SGLANG_BLOCK_NONZERO_RANK_CHILDREN"] = "0"
    try:
        engine = make_engine(launch.arguments)
    except Exception as error:  # told to the worker, which tells the operator
        logger.exception("the engine could not be made")
        asyncio.run(_refuse(line, error))
        sys.exit(1)
    try:
        asyncio.run(_follow(engine, line) if is_follower else _serve(engine, launch, line))
    finally:
        engine.shutdown()


async def _refuse(line: socket.socket, error: Exception) -> None:
    _, writer = await asyncio.open_connection(sock=line)
    frames.write(writer, frames.Refused(f"{type(error).__name__}: {error}"))
    await writer.drain()
    writer.close()


if __name__ == "__main__":
    main()
