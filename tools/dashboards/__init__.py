"""Pictures of the dashboards, drawn by Grafana's own components from what a Prometheus answers."""
