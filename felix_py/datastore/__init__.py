"""The agent's view of the cluster, and the only package that talks to the API server.

Entry point: :class:`felix_py.datastore.cluster.Cluster`. ``client`` transports bytes, ``informer`` lists and
watches in one thread per kind, ``decode`` (over ``wire``) makes records, ``bridge`` carries these to the event
loop, and ``store`` holds them and publishes differences. ``event_writer`` and ``conditions`` write to the server.
"""
