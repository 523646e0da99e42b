# SPDX-License-Identifier: Apache-2.0
"""Kubernetes: the way of a pod's bandwidth, in the order of the files' use.

publish   inventory.py, slices.py     what each NIC of the node has to give
prepare   dra.py, device_plugin.py    the kubelet asks; claim.py reads what a claim wants,
                                      pod_resources.py whose units are whose
attach    attachments.py, state.py    one tenant per pod, on disk, all or nothing; policy.py makes its policy
inject    cdi.py                      mounts and environment for the pod's containers
watch     watch.py, directory.py,     who is where, who may talk to whom, and what a person reads about it
          network_policy.py, events.py, gate.py
members.py finds the other nodes' routers; node.py puts all together; api.py talks to the API server, protocol.py to
the kubelet.
"""

DRIVER = "rdma.sluice.dev"
"""Name of the DRA driver, and the domain of resources, annotations and parameters."""
