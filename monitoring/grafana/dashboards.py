#!/usr/bin/env python3
"""Writes the Grafana dashboards in monitoring/grafana/dashboards.

Panels are declared here, one call each, because what they share (data source, variables, legends, links to the runbook)
makes up most of Grafana's JSON and would drift. A panel can't be declared without a unit and a description. The JSON is
committed, so using it does not need this script; a test fails if the two differ.

usage: dashboards.py [--check]
"""

import json
import pathlib
import sys

DIRECTORY = pathlib.Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Both variables match everything by default, the missing namespace of docker compose included.
IN_NAMESPACE = 'namespace=~"$namespace"'
HERE = f'{IN_NAMESPACE}, instance=~"$instance"'
OPEN = 'state=~"queued|running|retrying"'

WORKERS = 'label_values(up{job="kafka-worker", namespace=~"$namespace"}, instance)'
SERVERS = 'label_values(up{job="mcp-server", namespace=~"$namespace"}, instance)'
BOTH = 'label_values(up{job=~"mcp-server|kafka-worker", namespace=~"$namespace"}, instance)'
TOOLS = "label_values(mcp_server_operation_duration_seconds_count, gen_ai_tool_name)"

# Panels draw the threshold of their alert, if it has one; the alert itself is in monitoring/prometheus/rules.yml.
GOOD_AT_ZERO = [(None, "green"), (1, "red")]
NONE = [(None, "green")]


def variable(name, label, query):
    """A variable that selects among the values of a label, all of them by default."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def variables(*more):
    """The variables of a dashboard: data source, address of the runbook, namespace, and its own."""
    datasource = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "current": {"selected": False, "text": "Prometheus", "value": "prometheus"},
        "options": [],
        "multi": False,
        "includeAll": False,
        "refresh": 1,
        "hide": 0,
        "skipUrlSync": False,
    }
    # A constant, so that publishing the runbook elsewhere means changing one value.
    place = "docs/runbook.md"
    runbook = {
        "name": "runbook",
        "label": "Runbook",
        "description": "Where docs/runbook.md is published.",
        "type": "constant",
        "query": place,
        "current": {"selected": False, "text": place, "value": place},
        "options": [],
        "hide": 2,
        "skipUrlSync": True,
    }
    namespace = variable("namespace", "Namespace", 'label_values(up{job=~"mcp-server|kafka-worker"}, namespace)')
    return [datasource, runbook, namespace, *more]


def panel(title, unit, description, *queries, kind="timeseries", steps=NONE, alert=None, width=8, height=8, **options):
    """One panel. A query is an expression and its legend. `alert` is the alert that watches the same thing."""
    assert unit and description.endswith("."), title
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "range": kind not in ("stat", "table"),
            "instant": kind in ("stat", "table"),
            "format": {"table": "table", "heatmap": "heatmap"}.get(kind, "time_series"),
        }
        for number, (expression, legend) in enumerate(queries)
    ]
    defaults = {
        "unit": unit,
        "color": {"mode": "thresholds" if kind == "stat" else "palette-classic"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in steps],
        },
        "mappings": options.get("mappings", []),
    }
    if options.get("minimum", 0) is not None:
        defaults["min"] = options.get("minimum", 0)
    if unit == "short":
        defaults["decimals"] = options.get("decimals", 0)
    result = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": options.get("overrides", [])},
        "gridPos": {"w": width, "h": height},
    }
    if alert:
        url = "${runbook}#" + alert.lower()
        result["links"] = [{"title": f"Runbook: {alert}", "url": url, "targetBlank": True}]
    if kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "bars" if options.get("bars") else "line",
            "fillOpacity": 30 if options.get("stack") else 80 if options.get("bars") else 8,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if options.get("stack") else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if len(steps) > 1 else "off"},
        }
        result["options"] = {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif kind == "stat":
        result["options"] = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
            "textMode": "auto",
            "justifyMode": "auto",
            "orientation": "auto",
        }
    elif kind == "heatmap":
        del defaults["min"], defaults["color"]
        result["options"] = {
            "calculate": False,
            "yAxis": {"unit": unit},
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 32, "exponent": 0.5, "fill": "blue"},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": False},
            "legend": {"show": True},
        }
    elif kind == "table":
        hidden = {name: True for name in ("Time", "Value", "__name__", "endpoint", "container", "service_name")}
        result["options"] = {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": "instance"}]}
        result["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return result


def row(title, *panels):
    """A heading and the panels below it."""
    return title, panels


def dashboard(uid, title, description, templating, *rows):
    """A whole dashboard: places the panels from left to right and numbers them."""
    panels, top, number = [], 0, 0
    for heading, members in rows:
        number += 1
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append({"id": number, "type": "row", "title": heading, "collapsed": False, "gridPos": place, "panels": []})
        left, top, tallest = 0, top + 1, 0
        for member in members:
            size = member["gridPos"]
            if left + size["w"] > 24:
                left, top, tallest = 0, top + tallest, 0
            number += 1
            panels.append({"id": number, **member, "gridPos": {"x": left, "y": top, **size}})
            left, tallest = left + size["w"], max(tallest, size["h"])
        top += tallest
    others = {
        "title": "mcp-fleet",
        "type": "dashboards",
        "tags": ["mcp-fleet"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "The other dashboards of the fleet",
        "url": "",
    }
    runbook = {
        "title": "Runbook",
        "type": "link",
        "tags": [],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": False,
        "targetBlank": True,
        "icon": "doc",
        "tooltip": "What each alert means and what to do",
        "url": "${runbook}",
    }
    alerts = {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Fleet.*", alertstate="firing"}',
        "step": "60s",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}} {{kind}}",
        "useValueForTime": False,
    }
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["mcp-fleet"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "refresh": "30s",
        "links": [others, runbook],
        "annotations": {"list": [alerts]},
        "templating": {"list": templating},
        "panels": panels,
    }


def rate(metric, by, labels=HERE):
    """The rate per second of a counter."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def increase(metric, by, labels=HERE):
    """The increase of a counter in one step of the graph, for rare events."""
    return f"sum by ({by}) (increase({metric}{{{labels}}}[$__rate_interval]))"


def quantile(share, metric, by="", labels=HERE):
    """A quantile of a histogram."""
    by = f", {by}" if by else ""
    return f"histogram_quantile({share}, sum by (le{by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))"


def quantiles(metric, labels=HERE):
    """The median, p95 and p99 of a histogram."""
    return [(quantile(share, metric, "", labels), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]


def each(metric, labels=HERE, function="max"):
    """A gauge, per instance."""
    return f"{function} by (instance) ({metric}{{{labels}}})", "{{instance}}"


def fleet():
    """Whether the fleet works, how far it is behind, and what it costs."""
    lag = f'sum(max by (namespace, partition) (fleet_consumer_lag{{topic="jobs", {IN_NAMESPACE}}}))'
    both = f'job=~"mcp-server|kafka-worker", {HERE}'
    return dashboard(
        "mcp-fleet",
        "mcp-fleet / Fleet",
        "Whether the fleet works, how far it is behind, and what it costs.",
        variables(variable("instance", "Instance", BOTH)),
        row(
            "Now",
            panel("Workers", "short", "Workers that answer Prometheus.",
                  (f'count(up{{job="kafka-worker", {IN_NAMESPACE}}} == 1) or vector(0)', ""),
                  kind="stat", steps=[(None, "red"), (1, "green")], alert="FleetNoWorker", width=3, height=4),
            panel("Servers", "short", "Replicas of the MCP server that answer Prometheus.",
                  (f'count(up{{job="mcp-server", {IN_NAMESPACE}}} == 1) or vector(0)', ""),
                  kind="stat", steps=[(None, "red"), (1, "green")], alert="FleetServerDown", width=3, height=4),
            panel("Alerts", "short", "Alerts of the fleet that are firing.",
                  ('count(ALERTS{alertname=~"Fleet.*", alertstate="firing", namespace=~"$namespace"}) or vector(0)', ""),
                  kind="stat", steps=GOOD_AT_ZERO, width=3, height=4),
            panel("Open jobs", "short", "Jobs that the ledger knows and that have not ended: queued, running, retrying.",
                  (f"sum(max by (namespace, state) (mcp_server_ledger_jobs{{{OPEN}, {IN_NAMESPACE}}}))", ""),
                  kind="stat", width=3, height=4),
            panel("Lag", "short", "Records of the jobs topic that are not committed. One long job holds back the committed "
                  "offset of its partition, so lag can be high while nothing waits.",
                  (lag, ""), kind="stat", alert="FleetLagGrows", width=3, height=4),
            panel("Oldest job", "s", "Age of the oldest open job in the memory of any worker.",
                  (f"max(fleet_oldest_job_age_seconds{{{IN_NAMESPACE}}})", ""), kind="stat",
                  steps=[(None, "green"), (600, "orange"), (1800, "red")], alert="FleetOldestJobTooOld", width=3, height=4),
            panel("Breakers open", "percentunit", "Share of workers that are waiting for the MCP server.",
                  (f"avg(fleet_breaker_open{{{IN_NAMESPACE}}})", ""), kind="stat",
                  steps=[(None, "green"), (0.01, "red")], alert="FleetBreakerOpen", width=3, height=4),
            panel("Dead letters", "short", "Records in the dead-letter topic, including replayed ones.",
                  (f"max(mcp_server_dead_letters{{{IN_NAMESPACE}}})", ""), kind="stat",
                  steps=[(None, "green"), (1, "orange")], alert="FleetDeadLettersWait", width=3, height=4),
        ),
        row(
            "Work",
            panel("Lag by partition", "short", "Records of each partition of the jobs topic that are not committed.",
                  (f'max by (partition) (fleet_consumer_lag{{topic="jobs", {IN_NAMESPACE}}})', "{{partition}}"),
                  alert="FleetLagGrows", stack=True),
            panel("Time to clear the lag", "s", "Lag divided by jobs settled per second: how long the workers need if nothing "
                  "more arrives. Infinite, and not drawn, while nothing is being settled.",
                  (f"max(namespace:fleet_consumer_lag:drain_seconds{{{IN_NAMESPACE}}} < +Inf)", "time to clear"),
                  steps=[(None, "green"), (900, "red")], alert="FleetLagGrows"),
            panel("Throughput", "ops", "Records read from the jobs topic and jobs settled, per second.",
                  (f"sum(rate(messaging_client_consumed_messages_total{{{HERE}}}[$__rate_interval]))", "read"),
                  (f"sum(rate(fleet_jobs_settled_total{{{HERE}}}[$__rate_interval]))", "settled")),
            panel("In flight", "short", "Running attempts by worker; at most MCP_MAX_IN_FLIGHT each.",
                  each("fleet_jobs_in_flight"), alert="FleetWorkerStuck", stack=True),
            panel("In memory", "short", "Unsettled jobs in the memory of each worker, including those in flight. At "
                  "MCP_MAX_BUFFERED the worker stops fetching.",
                  each("fleet_jobs_buffered"), stack=True),
            panel("Bytes in memory", "bytes", "Bytes of the jobs in the memory of each worker. At MCP_MAX_BUFFERED_BYTES the worker "
                  "stops fetching.",
                  each("fleet_jobs_buffered_bytes"), stack=True),
            panel("Oldest job", "s", "Age of the oldest open job in the memory of each worker.",
                  each("fleet_oldest_job_age_seconds"), steps=[(None, "green"), (1800, "red")],
                  alert="FleetOldestJobTooOld"),
            panel("Jobs in the ledger", "short", "Open jobs by state, as known to the replica that knows most of them.",
                  (f"max by (state) (mcp_server_ledger_jobs{{{OPEN}, {IN_NAMESPACE}}})", "{{state}}"), stack=True),
            panel("Open breakers", "bool_on_off", "On while a worker waits for the MCP server.",
                  each("fleet_breaker_open"), steps=[(None, "green"), (1, "red")], alert="FleetBreakerOpen"),
        ),
        row(
            "Workers and servers",
            panel("Instances", "short", "Processes that answer Prometheus.",
                  (f"count by (job) (up{{{both}}} == 1)", "{{job}}"), alert="FleetTargetDown"),
            panel("Partitions by worker", "short", "How many partitions each worker reads, including those of the delayed topic. A "
                  "worker beyond the number of partitions has none.",
                  each("fleet_partitions_assigned"), alert="FleetNoPartitions", stack=True),
            panel("Versions", "string", "The version that each process runs.",
                  (f"max by (job, instance, service, version) (fleet_build_info{{{both}}})", ""), kind="table", minimum=None),
            panel("CPU", "percentunit", "CPU time of each process; 100 % is one core.",
                  (f"max by (instance) (rate(process_cpu_seconds_total{{{both}}}[$__rate_interval]))", "{{instance}}")),
            panel("Memory", "bytes", "Resident memory of each process, without the children of a server.",
                  (f"max by (instance) (process_resident_memory_bytes{{{both}}})", "{{instance}}")),
            panel("File descriptors", "percentunit", "Share of its file descriptors that each process uses.",
                  (f"max by (instance) (process_open_fds{{{both}}} / process_max_fds{{{both}}})", "{{instance}}"),
                  steps=[(None, "green"), (0.8, "red")], alert="FleetFileDescriptors"),
            panel("Threads", "short", "Threads of each process.",
                  (f"max by (instance) (process_threads{{{both}}})", "{{instance}}")),
            panel("Time since the start", "s", "How long each process has been running. A drop is a restart.",
                  (f"time() - max by (instance) (process_start_time_seconds{{{both}}})", "{{instance}}")),
        ),
    )


def delivery():
    """How jobs end, and whether the promises hold."""
    seconds = "messaging_process_duration_seconds"
    return dashboard(
        "mcp-fleet-delivery",
        "mcp-fleet / Delivery",
        "How jobs end, and whether the promises hold.",
        variables(variable("instance", "Worker", WORKERS)),
        row(
            "Jobs",
            panel("Settled by state", "ops", "Jobs that ended per second, by terminal state.",
                  (rate("fleet_jobs_settled_total", "state"), "{{state}}"), alert="FleetManyJobsFail", stack=True),
            panel("Settled by type", "ops", "Jobs that ended per second, by type.",
                  (rate("fleet_jobs_settled_total", "type"), "{{type}}"), stack=True),
            panel("Failed share", "percentunit", "Share of settled jobs that failed.",
                  (f'sum(rate(fleet_jobs_settled_total{{state="failed", {HERE}}}[$__rate_interval]))'
                   f" / sum(rate(fleet_jobs_settled_total{{{HERE}}}[$__rate_interval]))", "failed"),
                  steps=[(None, "green"), (0.25, "red")], alert="FleetManyJobsFail"),
            panel("Attempts by outcome", "ops", "Attempts per second. After `retry` the job is tried again; `unavailable` is the "
                  "server's fault and costs the job nothing.",
                  (rate("fleet_attempts_total", "outcome"), "{{outcome}}"), stack=True),
            panel("Time of attempts", "s", "How long attempts take, over all outcomes.", *quantiles(seconds)),
            panel("Time of attempts by outcome", "s", "95 % of attempts take less, by outcome.",
                  (quantile(0.95, seconds, "outcome"), "{{outcome}}")),
            panel("Distribution of the time of attempts", "s", "How many attempts took how long.",
                  (f"sum by (le) (increase({seconds}_bucket{{{HERE}}}[$__rate_interval]))", "{{le}}"), kind="heatmap",
                  width=16),
            panel("Cancel requests", "short", "Cancel requests that met a job: running, waiting, ending (too late), arrived (after "
                  "the request).",
                  (increase("fleet_cancel_requests_total", "job"), "{{job}}"), bars=True),
        ),
        row(
            "Waiting",
            panel("Parked", "short", "Jobs that wait in memory for their time or their next attempt, for MCP_MAX_PARK at most.",
                  each("fleet_jobs_parked"), stack=True),
            panel("Passed on", "ops", "Jobs deferred or relayed per second because they have to wait, by the topic they came from.",
                  (rate("fleet_jobs_passed_on_total", "topic"), "{{topic}}")),
            panel("On the delayed topic", "short", "Records of the delayed topic that are not committed. They wait for their time and are "
                  "not a backlog.",
                  (f'sum(max by (namespace, partition) (fleet_consumer_lag{{topic="delayed", {IN_NAMESPACE}}}))', "waiting")),
        ),
        row(
            "Dead letters",
            panel("Dead letters by kind", "short", "Dead letters written, by kind of error.",
                  (increase("fleet_dead_letters_total", "kind"), "{{kind}}"), alert="FleetDeadLettersArrive", bars=True),
            panel("Dead letters that wait", "short", "Records in the dead-letter topic, including replayed ones; `mcp-fleet dlq purge` "
                  "shortens it.",
                  (f"max(mcp_server_dead_letters{{{IN_NAMESPACE}}})", "dead letters"), alert="FleetDeadLettersWait"),
            panel("Repeats passed over", "short", "Records that arrived again after the worker had settled them, and did not run again.",
                  (increase("fleet_jobs_passed_over_total", "instance"), "{{instance}}"), bars=True),
        ),
        row(
            "Kafka",
            panel("Commits", "ops", "Commits answered by the broker per second, by whether it accepted them.",
                  (rate("fleet_commits_total", "ok"), "ok={{ok}}")),
            panel("Commit age", "s", "How long the oldest settled job of each worker has waited for its commit.",
                  each("fleet_commit_age_seconds"), steps=[(None, "green"), (60, "red")], alert="FleetWorkerNotCommitting"),
            panel("Failed writes", "short", "Events, dead letters and replies that Kafka rejected. Events and dead letters are written again.",
                  (increase("fleet_write_failures_total", "kind"), "{{kind}}"), alert="FleetWritesFail", bars=True),
            panel("Rebalances", "short", "Changes of assignments. `lost` means that a worker was removed from the group.",
                  (increase("fleet_rebalances_total", "kind"), "{{kind}}"), alert="FleetRebalanceStorm", bars=True),
            panel("Partitions by worker", "short", "How many partitions each worker reads.",
                  each("fleet_partitions_assigned"), alert="FleetPartitionsLost", stack=True),
            panel("Invariants violated", "short", "Violations of each named invariant since the process started. Anything but 0 is a "
                  "bug.",
                  (f"sum by (invariant) (fleet_invariant_violations_total{{{HERE}}})", "{{invariant}}"),
                  steps=GOOD_AT_ZERO, alert="FleetInvariantViolated"),
        ),
    )


def tools():
    """What the server is asked for, which tools answer, and how fast."""
    tool = f'gen_ai_tool_name=~"$tool", {HERE}'
    calls = "mcp_server_operation_duration_seconds"
    http = "http_server_request_duration_seconds"
    return dashboard(
        "mcp-fleet-tools",
        "mcp-fleet / Tools",
        "What the MCP server is asked for, which tools answer, and how fast.",
        variables(variable("instance", "Server", SERVERS), variable("tool", "Tool", TOOLS)),
        row(
            "Tools",
            panel("Calls by tool", "ops", "Calls per second, by the name under which the server offers the tool.",
                  (rate(f"{calls}_count", "gen_ai_tool_name", f'mcp_method_name="tools/call", {tool}'), "{{gen_ai_tool_name}}"),
                  stack=True),
            panel("Errors by tool", "ops", "Calls per second that ended in an error, by tool and type of error.",
                  (rate(f"{calls}_count", "gen_ai_tool_name, error_type",
                        f'mcp_method_name="tools/call", error_type!="", {tool}'), "{{gen_ai_tool_name}} {{error_type}}"),
                  stack=True),
            panel("Time by tool", "s", "95 % of the calls of a tool take less.",
                  (quantile(0.95, calls, "gen_ai_tool_name", f'mcp_method_name="tools/call", {tool}'), "{{gen_ai_tool_name}}")),
            panel("Outcomes", "ops", "Tool calls per second, of own and hosted tools. `tool-error` is a failure of the tool itself, `error` "
                  "one of the server or the hosted server.",
                  (rate("mcp_server_tool_calls_total", "kind, outcome"), "{{kind}} {{outcome}}"), stack=True),
            panel("Time of all tools", "s", "How long tool calls take, over all tools.",
                  *quantiles(calls, f'mcp_method_name="tools/call", {tool}')),
            panel("Share of errors", "percentunit", "Share of tool calls that ended in an error.",
                  (f'sum(rate({calls}_count{{mcp_method_name="tools/call", error_type!="", {tool}}}[$__rate_interval]))'
                   f' / sum(rate({calls}_count{{mcp_method_name="tools/call", {tool}}}[$__rate_interval]))', "errors")),
        ),
        row(
            "Hosted servers",
            panel("Hosted servers by state", "short", "How many hosted MCP servers are in each state, on the replica with the most of them.",
                  (f"max by (state) (mcp_server_hosted_servers{{{HERE}}})", "{{state}}"), alert="FleetHostedServerDown"),
            panel("Children", "short", "Child processes of each replica.", each("mcp_server_hosted_children"), stack=True),
            panel("Restarts", "short", "Restarts of hosted servers that had failed.",
                  (increase("mcp_server_hosted_restarts_total", "instance"), "{{instance}}"),
                  alert="FleetHostedServerRestarts", bars=True),
            panel("Calls under way", "short", "Running calls of hosted tools.",
                  each("mcp_server_hosted_calls_in_flight"), stack=True),
            panel("Calls turned away", "short", "Rejected calls of hosted tools: the breaker was open, the queue was full, or the wait "
                  "was too long.",
                  (increase("mcp_server_hosted_calls_turned_away_total", "reason"), "{{reason}}"),
                  alert="FleetCallsTurnedAway", bars=True),
            panel("Breaker changes", "short", "Breakers of hosted servers that opened (several calls in a row were lost) or closed.",
                  (increase("mcp_server_hosted_breaker_changes_total", "to"), "to {{to}}"),
                  alert="FleetHostedServerBreaker", bars=True),
            panel("Policy reloads", "short", "Changes of the policy file that were applied or invalid.",
                  (increase("mcp_server_policy_reloads_total", "outcome"), "{{outcome}}"),
                  alert="FleetPolicyInvalid", bars=True),
        ),
        row(
            "HTTP",
            panel("Requests by route", "reqps", "HTTP requests per second by route, without probes and scrapes.",
                  (rate(f"{http}_count", "http_route"), "{{http_route}}"), stack=True),
            panel("Requests by status", "reqps", "HTTP requests per second by status.",
                  (rate(f"{http}_count", "http_response_status_code"), "{{http_response_status_code}}"),
                  alert="FleetServerErrors", stack=True),
            panel("Time by route", "s", "95 % of the requests of a route take less, from the request to the beginning of the answer.",
                  (quantile(0.95, http, "http_route"), "{{http_route}}")),
            panel("Sessions", "short", "Sessions of clients that speak older revisions of the protocol.", each("mcp_server_sessions")),
            panel("Connections", "short", "Open HTTP connections of each server, including those of probes and scrapes. Beyond "
                  "768, new ones are rejected.",
                  each("fleet_http_connections"), steps=[(None, "green"), (700, "red")], alert="FleetConnectionsTurnedAway"),
            panel("Connections turned away", "short", "Requests answered with 503 because too many connections were open.",
                  (increase("fleet_http_busy_total", "instance"), "{{instance}}"), alert="FleetConnectionsTurnedAway", bars=True),
        ),
        row(
            "Jobs",
            panel("Submitted", "ops", "Jobs submitted through the server per second; `existing` ones were recognised as repeats.",
                  (rate("mcp_server_jobs_submitted_total", "outcome"), "{{outcome}}"), stack=True),
            panel("Repeats answered from memory", "ops", "Repeated calls per second that were answered with the remembered result.",
                  (rate("mcp_server_repeats_answered_total", "instance"), "{{instance}}")),
            panel("Memory for repeats", "bytes", "Bytes of remembered results, at most MCP_REPEAT_MAX_BYTES.",
                  each("mcp_server_repeat_memory_bytes")),
            panel("Ledger", "short", "Jobs in the ledger by state. Every replica has all jobs.",
                  (f"max by (state) (mcp_server_ledger_jobs{{{HERE}}})", "{{state}}"), stack=True),
            panel("Ledger behind", "short", "Events that a replica has not read yet.",
                  each("mcp_server_ledger_behind"), steps=[(None, "green"), (1000, "red")], alert="FleetLedgerBehind"),
            panel("Forgotten by the ledger", "short", "Jobs that the ledger dropped: ended jobs because of their age or a full ledger, open jobs "
                  "only if it is too small.",
                  (increase("mcp_server_ledger_forgotten_total", "what"), "{{what}}"), alert="FleetLedgerTooSmall", bars=True),
        ),
    )


def main():
    """Writes the files, or reports which of them differ."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    differ = []
    for make in (fleet, delivery, tools):
        path = DIRECTORY / f"{make.__name__}.json"
        text = json.dumps(make(), indent=2, ensure_ascii=False) + "\n"
        if check and (not path.exists() or path.read_text() != text):
            differ.append(path.name)
        elif not check:
            path.write_text(text)
    if differ:
        sys.exit(f"{', '.join(differ)} differ from dashboards.py: run monitoring/grafana/dashboards.py")


if __name__ == "__main__":
    main()
