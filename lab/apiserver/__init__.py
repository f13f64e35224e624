"""A Kubernetes API server in memory, for the lab and for tests: what kubectl and informers need, nothing more."""

from lab.apiserver.kubeconfig import write_kubeconfig
from lab.apiserver.server import ApiServer, Options

__all__ = ["ApiServer", "Options", "write_kubeconfig"]
