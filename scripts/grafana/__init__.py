"""The Grafana dashboards of the chart: what is on them, a module each, and how Grafana reads it."""
