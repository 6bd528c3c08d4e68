"""What deployment files name and the project does not have yet; empty once it has."""

AWAITED_COMMANDS = {"console"}
AWAITED_FILES = {
    "./config/prometheus/prometheus.yml",
    "./config/prometheus/alerts.yml",
    "./config/grafana/provisioning",
    "./config/grafana/dashboards",
}
