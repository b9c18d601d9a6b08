"""Where a mesh on one machine listens unless its flags say otherwise."""

ROUTER_PORT = 7411
"""gRPC of the router."""

GATEWAY_PORT = 7480
"""HTTP of the gateway: the OpenAI-compatible API and the console."""
