# SPDX-License-Identifier: Apache-2.0
"""The communication manager behind rdma_cm: ids, port spaces, connections, event channels.

One CommunicationManager per node. It knows nothing of sockets and of the shim's structures: `requests` translates
these. Ends on other nodes are reached by messages (`message`), which a link between routers may carry.
"""
