# SPDX-License-Identifier: Apache-2.0
"""What tenants may use: rates and sizes (rate.py), policies (policy.py), files of them (file.py, watch.py), and the
hierarchy that keeps promises within the capacity (hierarchy.py)."""
