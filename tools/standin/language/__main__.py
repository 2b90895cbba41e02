"""`pulumi-language-python`: Pulumi's Python language host where the real one is missing.

It runs the program with the project's own Python, through Pulumi's `pulumi-language-python-exec` (from the Go module
that the CLI was built from), and reports to the engine how it ended. It runs policy packs. It installs nothing,
generates no code and runs no other plugins: those calls are refused.
"""

# ruff: noqa: D102 - the methods of the host are the protocol's, described in language.proto

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

from modelfleet.infra.provider.serve import engine_address, serve

EXEC = "pulumi-language-python-exec"

SAID_ITS_ERROR = 32
"""Exit code of a program that showed its message through `pulumi.log.error`: the host adds nothing."""


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """Runs programs; refuses everything else in the protocol by name."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._programs: set[Process] = set()

    async def Handshake(self, request: Any, context: Any) -> Any:
        self._engine = request.engine_address or self._engine
        return language_pb2.LanguageHandshakeResponse()

    async def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version="0.0.0")

    async def GetRequiredPlugins(self, request: Any, context: Any) -> Any:
        return language_pb2.GetRequiredPluginsResponse()

    async def GetRequiredPackages(self, request: Any, context: Any) -> Any:
        # None in advance: the engine finds each provider when the program first uses it. It needs no provider that
        # this stack never uses.
        return language_pb2.GetRequiredPackagesResponse()

    async def RuntimeOptionsPrompts(self, request: Any, context: Any) -> Any:
        return language_pb2.RuntimeOptionsResponse()

    async def About(self, request: Any, context: Any) -> Any:
        version = ".".join(map(str, sys.version_info[:3]))
        return language_pb2.AboutResponse(
            executable=sys.executable, version=version, metadata={"host": "modelfleet stand-in"}
        )

    async def GetProgramDependencies(self, request: Any, context: Any) -> Any:
        return language_pb2.GetProgramDependenciesResponse()

    async def InstallDependencies(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._refuse(context, "pulumi install")
        yield  # never reached; it makes the method a stream, as the protocol wants

    async def RunPlugin(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Runs a policy pack, as the real host does; passes its port and output to the engine as they come."""
        if request.kind != "analyzer":
            await self._refuse(context, "running a plugin written in Python other than a policy pack")
        try:
            python = python_for(request.info)
        except FileNotFoundError as missing:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(missing))
        pack = await asyncio.create_subprocess_exec(
            *(python, "-u", "-m", "pulumi.policy", *request.args, request.info.program_directory),
            cwd=request.info.program_directory,
            env={**os.environ, **dict(item.split("=", 1) for item in request.env)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._programs.add(pack)
        try:
            async for answer in _output_of(pack):
                yield answer
        finally:
            if pack.returncode is None:
                pack.kill()
            self._programs.discard(pack)

    async def GenerateProgram(self, request: Any, context: Any) -> None:
        await self._refuse(context, "generating programs")

    async def GenerateProject(self, request: Any, context: Any) -> None:
        await self._refuse(context, "generating projects")

    async def GeneratePackage(self, request: Any, context: Any) -> None:
        await self._refuse(context, "generating packages")

    async def Pack(self, request: Any, context: Any) -> None:
        await self._refuse(context, "packing")

    async def Run(self, request: Any, context: Any) -> Any:
        try:
            command = command_line(request, self._engine)
        except FileNotFoundError as missing:
            return language_pb2.RunResponse(error=str(missing))
        program = await asyncio.create_subprocess_exec(
            *command,
            cwd=request.info.program_directory or request.pwd,
            env=environment(request),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a SIGINT to the engine's plugins must not print a traceback here
        )
        self._programs.add(program)
        try:
            code = await program.wait()
        except asyncio.CancelledError:
            self.end_programs()
            raise
        finally:
            self._programs.discard(program)
        if code == 0:
            return language_pb2.RunResponse()
        if code == SAID_ITS_ERROR:
            return language_pb2.RunResponse(bail=True)
        if code < 0:
            return language_pb2.RunResponse(error=f"signal {-code} ended the program")
        return language_pb2.RunResponse(error=f"Program exited with non-zero exit code: {code}")

    def end_programs(self) -> None:
        """Ends programs that still run: the engine is ending, so nothing would read their results."""
        for program in list(self._programs):
            if program.returncode is None:
                program.kill()

    async def _refuse(self, context: Any, what: str) -> None:
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{what}: the stand-in language host does not do this; install the Pulumi CLI",
        )


async def _output_of(process: Process) -> AsyncIterator[Any]:
    """Yields a process's output, and finally its exit code, in the protocol's form."""
    answers: asyncio.Queue[Any] = asyncio.Queue()

    async def pass_on(stream: Any, kind: str) -> None:
        while data := await stream.read(65536):
            await answers.put(language_pb2.RunPluginResponse(**{kind: data}))

    async def until_the_end() -> None:
        await asyncio.gather(pass_on(process.stdout, "stdout"), pass_on(process.stderr, "stderr"))
        await answers.put(language_pb2.RunPluginResponse(exitcode=await process.wait()))
        await answers.put(None)

    reading = asyncio.create_task(until_the_end())
    try:
        while (answer := await answers.get()) is not None:
            yield answer
    finally:
        reading.cancel()


def command_line(request: Any, engine: str) -> list[str]:
    """The program's command, with the arguments that the real host gives to Pulumi's exec script."""
    script = shutil.which(EXEC)
    if script is None:
        raise FileNotFoundError(f"{EXEC} is not on PATH; run: make tools")
    values = {
        "monitor": request.monitor_address,
        "engine": engine,
        "project": request.project,
        "root_directory": request.info.root_directory,
        "stack": request.stack,
        "pwd": request.pwd,
        "dry_run": "true" if request.dryRun else "false",
        "parallel": str(request.parallel),
        "organization": request.organization,
    }
    arguments = [part for key, value in values.items() if value for part in (f"--{key}", value)]
    return [
        python_for(request.info),
        "-u",
        script,
        *arguments,
        request.info.entry_point or ".",
        *request.args,
    ]


def python_for(info: Any) -> str:
    """The interpreter: the `virtualenv` of Pulumi.yaml's runtime options, or $PULUMI_PYTHON_CMD, or `python3` on PATH.

    Raises `FileNotFoundError` if it is missing.
    """
    chosen = json_format.MessageToDict(info.options).get("virtualenv")
    if not chosen:
        command = os.environ.get("PULUMI_PYTHON_CMD") or "python3"
        if (found := shutil.which(command)) is None:
            raise FileNotFoundError(f"{command} is not on PATH, and runtime.options.virtualenv is not set")
        return found
    python = Path(info.root_directory, chosen, "bin", "python")
    if not python.exists():
        raise FileNotFoundError(f"Pulumi.yaml: runtime.options.virtualenv: '{python}' is missing; run: make setup")
    return str(python)


def environment(request: Any) -> dict[str, str]:
    """The program's environment: the host's own plus the stack's config, in the form that the SDK reads."""
    return {
        **os.environ,
        "PULUMI_CONFIG": json.dumps(dict(request.config)),
        "PULUMI_CONFIG_SECRET_KEYS": json.dumps(list(request.configSecretKeys)),
    }


def main() -> None:
    """Serves the engine that started this process."""
    host = LanguageHost(engine_address(sys.argv[1:]) or "")
    serve(
        lambda server: language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server),
        at_end=host.end_programs,
    )


if __name__ == "__main__":
    main()
