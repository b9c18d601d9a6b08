"""A client of Baton with nothing but gRPC and the generated stubs.

python examples/grpc_client.py "The with statement" [HOST:PORT]
"""

import sys

import grpc

from baton.v1 import router_pb2, router_pb2_grpc, types_pb2


def main() -> None:
    text = sys.argv[1] if len(sys.argv) > 1 else "The with statement is used to"
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:7411"
    request = router_pb2.GenerateRequest(
        text=text,
        sampling_params=types_pb2.SamplingParams(max_tokens=64, temperature=0),
        priority=types_pb2.PRIORITY_HIGH,
    )
    with grpc.insecure_channel(address) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)
        for response in router.Generate(request, timeout=60):
            if response.HasField("chunk"):
                print(response.chunk.text, end="", flush=True)
            else:
                done = response.complete
                ttft_ms = done.timing.ttft.ToNanoseconds() / 1e6
                print(f"\n[{done.usage.completion_tokens} tokens, TTFT {ttft_ms:.0f} ms]")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
