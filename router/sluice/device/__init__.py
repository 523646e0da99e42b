# SPDX-License-Identifier: Apache-2.0
"""The device that a tenant sees."""
