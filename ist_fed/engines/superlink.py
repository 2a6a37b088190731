"""Flower's SuperLink, which here also logs whom it turned away and why: `python -m ist_fed.engines.superlink …`.

Flower tells the node only. This relies on two private names of Flower's interceptor, and does nothing else.
"""

from collections.abc import Callable
from logging import WARNING
from typing import Any

import grpc
from flwr.common import log
from flwr.server.superlink.fleet.grpc_rere import node_auth_server_interceptor as interceptor
from flwr.superlink.cli.flower_superlink import flower_superlink

MARK = "turned a node away"


def tell() -> None:
    """Let the interceptor log what it tells the node."""
    plain, wrapped = interceptor._unary_unary_rpc_terminator, interceptor.NodeAuthServerInterceptor._wrap_method_handler

    def terminator(message: str, code: Any = grpc.StatusCode.UNAUTHENTICATED) -> grpc.RpcMethodHandler:
        log(WARNING, "%s: %s", MARK, message)
        return plain(message, code)

    def wrap(self: Any, handler: grpc.RpcMethodHandler, key: bytes) -> grpc.RpcMethodHandler:
        made = wrapped(self, handler, key)
        return grpc.unary_unary_rpc_method_handler(
            _telling(made.unary_unary),
            request_deserializer=made.request_deserializer,
            response_serializer=made.response_serializer,
        )

    interceptor._unary_unary_rpc_terminator = terminator
    interceptor.NodeAuthServerInterceptor._wrap_method_handler = wrap  # type: ignore


def _telling(answer: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def told(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return answer(request, context)
        except Exception:
            if context.code() is grpc.StatusCode.UNAUTHENTICATED:
                log(WARNING, "%s: %s", MARK, (context.details() or b"").decode())
            raise

    return told


if __name__ == "__main__":
    tell()
    flower_superlink()
