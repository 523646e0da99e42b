# SPDX-License-Identifier: Apache-2.0
"""What tenants may use: rates and sizes (rate.py), a tenant's policy and policy files (policy.py)."""
