"""A Kubernetes API server in memory, for the lab and for tests: what kubectl and informers need, nothing more."""

from felix_py.lab.apiserver.kubeconfig import write_kubeconfig
from felix_py.lab.apiserver.server import ApiServer, Options

__all__ = ["ApiServer", "Options", "write_kubeconfig"]
