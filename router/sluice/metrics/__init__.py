# SPDX-License-Identifier: Apache-2.0
"""What a router tells about itself over HTTP: collector.py says what, server.py says it."""
