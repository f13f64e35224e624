"""Access to the API server by the official client's configuration: any kubeconfig, with error messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import urllib3
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import list_kube_config_contexts, load_incluster_config, load_kube_config
from kubernetes.config.config_exception import ConfigException

from felix_py.config import ConfigError
from felix_py.datastore.access import SocketOptions


class Official:
    """Access by the official client's configuration."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration

    @property
    def server(self) -> str:
        """The API server's URL, without a path."""
        return str(self._configuration.host)

    def authorization(self) -> str:
        """The header's value. The call makes the official client read a rotated token, or get one."""
        try:
            key = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        except ConfigException as error:
            raise OSError(str(error)) from error
        # A token file often ends with a newline, which a header must not contain.
        return str(key).strip() if key else ""

    def pool(self, options: SocketOptions) -> urllib3.PoolManager:
        """Connections with the official client's TLS settings and proxies."""
        self._configuration.socket_options = list(options)
        return cast(urllib3.PoolManager, RESTClientObject(self._configuration).pool_manager)


def of_kubeconfig(path: Path, context: str | None) -> Official:
    """Access by a kubeconfig, or several with their paths joined by colons; ConfigError if unusable."""
    configuration = Configuration()
    try:
        load_kube_config(str(path), context=context, client_configuration=configuration, persist_config=False)
    except Exception as error:
        # The official loader lets any YAML, base64, Type- or AttributeError through, and its messages quote the
        # entry, with the token.
        raise ConfigError(
            f"--kubeconfig {path}: {_words(error)}; compare it with `kubectl config view`"
        ) from None
    return Official(configuration)


def of_pod() -> Official:
    """Access as this pod's service account; ConfigError if there is none."""
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
    except (ConfigException, OSError) as error:
        where = "this pod's service account" if "KUBERNETES_SERVICE_HOST" in os.environ else "not inside a pod"
        raise ConfigError(
            f"no API server ({where}: {error}); "
            "give --kubeconfig, or run in a pod with a mounted service account token"
        ) from error
    return Official(configuration)


def namespace_of(kubeconfig: Path, context: str | None) -> str:
    """The namespace of a kubeconfig's context; ConfigError if it is unreadable, or lacks the context."""
    try:
        every, current = list_kube_config_contexts(str(kubeconfig))
        chosen = next(one for one in every if one["name"] == context) if context else current
        return str(chosen["context"].get("namespace") or "default")
    except StopIteration:
        raise ConfigError(
            f"--context {context}: {kubeconfig} has no such context; see `kubectl config get-contexts`"
        ) from None
    except Exception as error:
        raise ConfigError(f"--kubeconfig {kubeconfig}: {_words(error)}") from None


def _words(error: Exception) -> str:
    """An error on one line, without the quoted entry."""
    return (" ".join(str(error).split()) or type(error).__name__).partition("{")[0]
