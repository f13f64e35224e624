"""What the agent knows of the cluster, and the only place that talks to the API server.

Start at :class:`felix_py.datastore.cluster.Cluster`. Bytes come in through ``client``, ``informer`` keeps one
thread per kind listing and watching, ``decode`` (over ``wire``) makes records of them, ``bridge`` carries these
to the event loop, and ``store`` holds them there and tells of differences. ``events`` goes the other way:
Kubernetes Events on objects.
"""
