"""The services of a running server as its reflection tells of them, without the proto files."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

_OWN = "flashsale."


@dataclass(frozen=True)
class Method:
    """A method that can be called with bytes."""

    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        """/package.Service/Method"""
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def answer_class(self) -> Any:
        """The class of its answers."""
        return GetMessageClass(self.descriptor.output_type)

    async def call(self, channel: grpc.aio.Channel, request: bytes, timeout_s: float) -> Any:
        """The answer, or a stream's first one. Raises AioRpcError."""
        if not self.descriptor.server_streaming:
            return await channel.unary_unary(self.path)(request, timeout=timeout_s)  # type: ignore[arg-type]
        call: Any = channel.unary_stream(self.path)(request, timeout=timeout_s)  # type: ignore[arg-type]
        try:
            return await call.read()
        finally:
            call.cancel()


async def _files(stub: Any, symbol: str) -> AsyncIterator[FileDescriptorProto]:
    """The file that has ``symbol``, and those that it needs, those needed first."""
    found: dict[str, FileDescriptorProto] = {}

    async def ask(**question: Any) -> None:
        call = stub.ServerReflectionInfo(timeout=20)
        await call.write(reflection_pb2.ServerReflectionRequest(**question))
        await call.done_writing()
        answer = (await call.read()).file_descriptor_response
        for octets in answer.file_descriptor_proto:
            file = FileDescriptorProto.FromString(octets)
            if file.name in found:
                continue
            for needed in file.dependency:
                if needed not in found:
                    await ask(file_by_filename=needed)
            found[file.name] = file

    await ask(file_containing_symbol=symbol)
    for file in found.values():
        yield file


async def methods_of(channel: grpc.aio.Channel) -> list[Method]:
    """Every method of the mesh's own services on a server."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    call = stub.ServerReflectionInfo(timeout=20)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await call.done_writing()
    names = [each.name for each in (await call.read()).list_services_response.service if each.name.startswith(_OWN)]
    pool, known = DescriptorPool(), set[str]()
    methods = []
    for name in names:
        async for file in _files(stub, name):
            if file.name not in known:
                known.add(file.name)
                pool.Add(file)
        methods += [Method(each) for each in pool.FindServiceByName(name).methods]
    return methods
