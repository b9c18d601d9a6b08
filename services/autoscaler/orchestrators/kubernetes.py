"""Two Deployments of a namespace, through the scale subresource and the official client.

What it needs of the API is `get` and `patch` on `deployments/scale` and `get` on `deployments`, of
these two only. Kubernetes chooses which pods end; each drains in its termination grace period.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from services.autoscaler.orchestrators.base import OrchestratorError, PoolReplicas
from services.autoscaler.state import Pool

TIMEOUT_S = 10.0
_PROGRESSING = "Progressing"


class KubernetesOrchestrator:
    """Scales the Deployments by pool in `namespace`; the client blocks, so it runs in threads."""

    name = "kubernetes"
    moves = False

    def __init__(
        self, deployments: Mapping[Pool, str], namespace: str, api: client.ApiClient | None = None
    ) -> None:
        self._deployments = deployments
        self._namespace = namespace
        self._client = api or _in_cluster()
        self._api = client.AppsV1Api(self._client)

    async def observe(self) -> Mapping[Pool, PoolReplicas]:
        """See Orchestrator."""
        return {
            pool: _replicas(await self._call(self._api.read_namespaced_deployment, name))
            for pool, name in self._deployments.items()
        }

    async def scale(self, pool: Pool, replicas: int, victims: Sequence[str] = ()) -> None:
        """See Orchestrator."""
        body = {"spec": {"replicas": replicas}}
        await self._call(
            self._api.patch_namespaced_deployment_scale, self._deployments[pool], body=body
        )

    async def move(self, to: Pool, workers: Sequence[str]) -> None:
        """See Orchestrator: it cannot."""
        raise OrchestratorError(f"{self.name} cannot move {', '.join(workers)} to {to.value}")

    async def close(self) -> None:
        """See Orchestrator."""
        await asyncio.to_thread(self._client.close)

    async def _call(self, method: Any, name: str, **arguments: Any) -> Any:
        try:
            return await asyncio.to_thread(
                method, name, self._namespace, _request_timeout=TIMEOUT_S, **arguments
            )
        except ApiException as error:
            raise OrchestratorError(
                f"deployment {self._namespace}/{name}: {error.status} {error.reason}"
            ) from error
        except (HTTPError, OSError) as error:
            raise OrchestratorError(f"the API server does not answer: {error}") from error


def _in_cluster() -> client.ApiClient:
    """Returns a client with the pod's service account, or with the user's kubeconfig outside."""
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]  # the client has no types
    except config.ConfigException:
        try:
            config.load_kube_config()  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise OrchestratorError(f"no cluster is known: {error}") from error
    return client.ApiClient()


def _replicas(deployment: Any) -> PoolReplicas:
    """Reads a Deployment; one that makes no progress counts what is missing as failed."""
    status, wanted = deployment.status, deployment.spec.replicas or 0
    for condition in status.conditions or ():
        if condition.type == _PROGRESSING and condition.status == "False":
            missing = max(0, wanted - (status.ready_replicas or 0))
            return PoolReplicas(wanted, missing, f"{condition.reason}: {condition.message}")
    return PoolReplicas(wanted)
