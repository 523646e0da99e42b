# SPDX-License-Identifier: Apache-2.0
"""The control plane: tenants' sockets, their sessions, verbs that make objects, and the operator's requests."""
