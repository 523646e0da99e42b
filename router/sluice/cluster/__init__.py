# SPDX-License-Identifier: Apache-2.0
"""Several nodes: who is where (directory), links between routers (CURVE), and the connections that carry QPs."""
