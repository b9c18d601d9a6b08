"""gRPC as Baton uses it: servers, channels, links, errors and statuses."""
