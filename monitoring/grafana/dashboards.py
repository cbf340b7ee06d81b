#!/usr/bin/env python3
"""Writes the Grafana dashboards in monitoring/grafana/dashboards.

The panels are declared here, one call each, because what they share (data source, variables, units of a legend, links to
the runbook) is the greater part of Grafana's JSON and would drift. A panel can't be declared without a unit and a
description. The JSON is committed, so nobody needs this script to use it; a test fails when the two differ.

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

# The threshold of an alert is drawn where the alert has one; the alert itself is in monitoring/prometheus/rules.yml.
GOOD_AT_ZERO = [(None, "green"), (1, "red")]
NONE = [(None, "green")]


def variable(name, label, query):
    """A choice among the values of a label, all of them by default."""
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
    """The data source, the place of the runbook, the namespace, and what a dashboard has of its own."""
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
    # A constant, so that whoever publishes the runbook somewhere changes one value.
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
    """A heading and what stands below it."""
    return title, panels


def dashboard(uid, title, description, templating, *rows):
    """A whole dashboard: places the panels from left to right and gives them numbers."""
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
    """What happens a second."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def increase(metric, by, labels=HERE):
    """What has happened in a step of the graph, for things that happen seldom."""
    return f"sum by ({by}) (increase({metric}{{{labels}}}[$__rate_interval]))"


def quantile(share, metric, by="", labels=HERE):
    """A quantile of a histogram."""
    by = f", {by}" if by else ""
    return f"histogram_quantile({share}, sum by (le{by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))"


def quantiles(metric, labels=HERE):
    """The three that are looked at."""
    return [(quantile(share, metric, "", labels), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]


def each(metric, labels=HERE, function="max"):
    """A gauge of every instance."""
    return f"{function} by (instance) ({metric}{{{labels}}})", "{{instance}}"


def fleet():
    """Whether it works, how far it is behind, and what it costs."""
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
            panel("Oldest job", "s", "Age of the oldest job in a worker's memory that has not ended.",
                  (f"max(fleet_oldest_job_age_seconds{{{IN_NAMESPACE}}})", ""), kind="stat",
                  steps=[(None, "green"), (600, "orange"), (1800, "red")], alert="FleetOldestJobTooOld", width=3, height=4),
            panel("Breakers open", "percentunit", "Share of the workers that wait for the MCP server.",
                  (f"avg(fleet_breaker_open{{{IN_NAMESPACE}}})", ""), kind="stat",
                  steps=[(None, "green"), (0.01, "red")], alert="FleetBreakerOpen", width=3, height=4),
            panel("Dead letters", "short", "Records in the dead-letter topic, replayed ones included.",
                  (f"max(mcp_server_dead_letters{{{IN_NAMESPACE}}})", ""), kind="stat",
                  steps=[(None, "green"), (1, "orange")], alert="FleetDeadLettersWait", width=3, height=4),
        ),
        row(
            "Work",
            panel("Lag by partition", "short", "Records of each partition of the jobs topic that are not committed.",
                  (f'max by (partition) (fleet_consumer_lag{{topic="jobs", {IN_NAMESPACE}}})', "{{partition}}"),
                  alert="FleetLagGrows", stack=True),
            panel("Time to clear the lag", "s", "Lag divided by what is settled a second: how long the workers need if nothing "
                  "more comes. Infinite, and not drawn, while nothing is settled.",
                  (f"max(namespace:fleet_consumer_lag:drain_seconds{{{IN_NAMESPACE}}} < +Inf)", "time to clear"),
                  steps=[(None, "green"), (900, "red")], alert="FleetLagGrows"),
            panel("Throughput", "ops", "Records read from the jobs topic, and jobs settled, a second.",
                  (f"sum(rate(messaging_client_consumed_messages_total{{{HERE}}}[$__rate_interval]))", "read"),
                  (f"sum(rate(fleet_jobs_settled_total{{{HERE}}}[$__rate_interval]))", "settled")),
            panel("In flight", "short", "Attempts under way by worker; at most MCP_MAX_IN_FLIGHT each.",
                  each("fleet_jobs_in_flight"), alert="FleetWorkerStuck", stack=True),
            panel("In memory", "short", "Jobs that a worker holds in memory and that are not settled, those in flight included. "
                  "At MCP_MAX_BUFFERED it stops fetching.",
                  each("fleet_jobs_buffered"), stack=True),
            panel("Bytes in memory", "bytes", "Bytes of the jobs that a worker holds in memory. At MCP_MAX_BUFFERED_BYTES it stops "
                  "fetching.",
                  each("fleet_jobs_buffered_bytes"), stack=True),
            panel("Oldest job", "s", "Age of the oldest job in each worker's memory that has not ended.",
                  each("fleet_oldest_job_age_seconds"), steps=[(None, "green"), (1800, "red")],
                  alert="FleetOldestJobTooOld"),
            panel("Jobs in the ledger", "short", "Jobs that have not ended by state, as the replica with the most knows them.",
                  (f"max by (state) (mcp_server_ledger_jobs{{{OPEN}, {IN_NAMESPACE}}})", "{{state}}"), stack=True),
            panel("Open breakers", "bool_on_off", "On while a worker waits for the MCP server.",
                  each("fleet_breaker_open"), steps=[(None, "green"), (1, "red")], alert="FleetBreakerOpen"),
        ),
        row(
            "Workers and servers",
            panel("Instances", "short", "Processes that answer Prometheus.",
                  (f"count by (job) (up{{{both}}} == 1)", "{{job}}"), alert="FleetTargetDown"),
            panel("Partitions by worker", "short", "How many partitions each worker reads, the delayed topic's included. A worker "
                  "beyond the number of partitions has none.",
                  each("fleet_partitions_assigned"), alert="FleetNoPartitions", stack=True),
            panel("Versions", "string", "The version that each process runs.",
                  (f"max by (job, instance, service, version) (fleet_build_info{{{both}}})", ""), kind="table", minimum=None),
            panel("CPU", "percentunit", "CPU time of each process; 100 % is one core.",
                  (f"max by (instance) (rate(process_cpu_seconds_total{{{both}}}[$__rate_interval]))", "{{instance}}")),
            panel("Memory", "bytes", "Resident memory of each process; the children of a server are not in it.",
                  (f"max by (instance) (process_resident_memory_bytes{{{both}}})", "{{instance}}")),
            panel("File descriptors", "percentunit", "Share of the file descriptors that each process has used.",
                  (f"max by (instance) (process_open_fds{{{both}}} / process_max_fds{{{both}}})", "{{instance}}"),
                  steps=[(None, "green"), (0.8, "red")], alert="FleetFileDescriptors"),
            panel("Threads", "short", "Threads of each process.",
                  (f"max by (instance) (process_threads{{{both}}})", "{{instance}}")),
            panel("Time since the start", "s", "How long each process has run. A line that falls is a restart.",
                  (f"time() - max by (instance) (process_start_time_seconds{{{both}}})", "{{instance}}")),
        ),
    )


def delivery():
    """What becomes of jobs, and whether the promises hold."""
    seconds = "messaging_process_duration_seconds"
    return dashboard(
        "mcp-fleet-delivery",
        "mcp-fleet / Delivery",
        "What becomes of jobs, and whether what is promised holds.",
        variables(variable("instance", "Worker", WORKERS)),
        row(
            "Jobs",
            panel("Settled by state", "ops", "Jobs a second that have come to their end, by what the end was.",
                  (rate("fleet_jobs_settled_total", "state"), "{{state}}"), alert="FleetManyJobsFail", stack=True),
            panel("Settled by type", "ops", "Jobs a second that have come to their end, by type.",
                  (rate("fleet_jobs_settled_total", "type"), "{{type}}"), stack=True),
            panel("Failed share", "percentunit", "Share of the settled jobs that have failed.",
                  (f'sum(rate(fleet_jobs_settled_total{{state="failed", {HERE}}}[$__rate_interval]))'
                   f" / sum(rate(fleet_jobs_settled_total{{{HERE}}}[$__rate_interval]))", "failed"),
                  steps=[(None, "green"), (0.25, "red")], alert="FleetManyJobsFail"),
            panel("Attempts by outcome", "ops", "Attempts a second. `retry` is tried again, `unavailable` is the server's fault and costs "
                  "the job nothing.",
                  (rate("fleet_attempts_total", "outcome"), "{{outcome}}"), stack=True),
            panel("Time of attempts", "s", "How long attempts take, all outcomes together.", *quantiles(seconds)),
            panel("Time of attempts by outcome", "s", "95 of 100 attempts take less, by outcome.",
                  (quantile(0.95, seconds, "outcome"), "{{outcome}}")),
            panel("Distribution of the time of attempts", "s", "How many attempts took how long.",
                  (f"sum by (le) (increase({seconds}_bucket{{{HERE}}}[$__rate_interval]))", "{{le}}"), kind="heatmap",
                  width=16),
            panel("Cancel requests", "short", "Requests to cancel that met a job: running, waiting, ending (too late), arrived (after the "
                  "request).",
                  (increase("fleet_cancel_requests_total", "job"), "{{job}}"), bars=True),
        ),
        row(
            "Waiting",
            panel("Parked", "short", "Jobs that wait in memory for their time or their next attempt; MCP_MAX_PARK at the longest.",
                  each("fleet_jobs_parked"), stack=True),
            panel("Passed on", "ops", "Jobs a second that were written on because they have to wait, by the topic they came from.",
                  (rate("fleet_jobs_passed_on_total", "topic"), "{{topic}}")),
            panel("On the delayed topic", "short", "Records of the delayed topic that are not committed. They wait for their time; this is no "
                  "backlog.",
                  (f'sum(max by (namespace, partition) (fleet_consumer_lag{{topic="delayed", {IN_NAMESPACE}}}))', "waiting")),
        ),
        row(
            "Dead letters",
            panel("Dead letters by kind", "short", "Dead letters that were written, by the kind of the error.",
                  (increase("fleet_dead_letters_total", "kind"), "{{kind}}"), alert="FleetDeadLettersArrive", bars=True),
            panel("Dead letters that wait", "short", "Records in the dead-letter topic, replayed ones included; `mcp-fleet dlq purge` "
                  "shortens it.",
                  (f"max(mcp_server_dead_letters{{{IN_NAMESPACE}}})", "dead letters"), alert="FleetDeadLettersWait"),
            panel("Repeats passed over", "short", "Records that came again after the worker had settled them, and were not run again.",
                  (increase("fleet_jobs_passed_over_total", "instance"), "{{instance}}"), bars=True),
        ),
        row(
            "Kafka",
            panel("Commits", "ops", "Commits a second that the broker has answered, by whether it took them.",
                  (rate("fleet_commits_total", "ok"), "ok={{ok}}")),
            panel("Commit age", "s", "How long the oldest settled job of each worker has waited for its commit.",
                  each("fleet_commit_age_seconds"), steps=[(None, "green"), (60, "red")], alert="FleetWorkerNotCommitting"),
            panel("Failed writes", "short", "Events, dead letters and replies that Kafka did not take. The first two are written again.",
                  (increase("fleet_write_failures_total", "kind"), "{{kind}}"), alert="FleetWritesFail", bars=True),
            panel("Rebalances", "short", "Changes of assignments. `lost` means that a worker was put out of the group.",
                  (increase("fleet_rebalances_total", "kind"), "{{kind}}"), alert="FleetRebalanceStorm", bars=True),
            panel("Partitions by worker", "short", "How many partitions each worker reads.",
                  each("fleet_partitions_assigned"), alert="FleetPartitionsLost", stack=True),
            panel("Invariants violated", "short", "How often each named invariant was found broken since the process started. Anything "
                  "but 0 is a bug.",
                  (f"sum by (invariant) (fleet_invariant_violations_total{{{HERE}}})", "{{invariant}}"),
                  steps=GOOD_AT_ZERO, alert="FleetInvariantViolated"),
        ),
    )


def tools():
    """What the server is asked, by whom it is answered, and how fast."""
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
            panel("Calls by tool", "ops", "Calls a second by the name under which the server offers the tool.",
                  (rate(f"{calls}_count", "gen_ai_tool_name", f'mcp_method_name="tools/call", {tool}'), "{{gen_ai_tool_name}}"),
                  stack=True),
            panel("Errors by tool", "ops", "Calls a second that came to an error, by tool and sort of error.",
                  (rate(f"{calls}_count", "gen_ai_tool_name, error_type",
                        f'mcp_method_name="tools/call", error_type!="", {tool}'), "{{gen_ai_tool_name}} {{error_type}}"),
                  stack=True),
            panel("Time by tool", "s", "95 of 100 calls of a tool take less.",
                  (quantile(0.95, calls, "gen_ai_tool_name", f'mcp_method_name="tools/call", {tool}'), "{{gen_ai_tool_name}}")),
            panel("Outcomes", "ops", "Tool calls a second, of own and hosted tools. `tool-error` is the tool's own failure, `error` is one of "
                  "the server or the hosted server.",
                  (rate("mcp_server_tool_calls_total", "kind, outcome"), "{{kind}} {{outcome}}"), stack=True),
            panel("Time of all tools", "s", "How long tool calls take, all tools together.",
                  *quantiles(calls, f'mcp_method_name="tools/call", {tool}')),
            panel("Share of errors", "percentunit", "Share of the tool calls that came to an error.",
                  (f'sum(rate({calls}_count{{mcp_method_name="tools/call", error_type!="", {tool}}}[$__rate_interval]))'
                   f' / sum(rate({calls}_count{{mcp_method_name="tools/call", {tool}}}[$__rate_interval]))', "errors")),
        ),
        row(
            "Hosted servers",
            panel("Hosted servers by state", "short", "How many hosted MCP servers are in each state, on the replica that has the most.",
                  (f"max by (state) (mcp_server_hosted_servers{{{HERE}}})", "{{state}}"), alert="FleetHostedServerDown"),
            panel("Children", "short", "Child processes of each replica.", each("mcp_server_hosted_children"), stack=True),
            panel("Restarts", "short", "Hosted servers that had died and were started again.",
                  (increase("mcp_server_hosted_restarts_total", "instance"), "{{instance}}"),
                  alert="FleetHostedServerRestarts", bars=True),
            panel("Calls under way", "short", "Calls of hosted tools that are under way.",
                  each("mcp_server_hosted_calls_in_flight"), stack=True),
            panel("Calls turned away", "short", "Calls of hosted tools that were not made: the breaker was open, the queue full, or the wait "
                  "too long.",
                  (increase("mcp_server_hosted_calls_turned_away_total", "reason"), "{{reason}}"),
                  alert="FleetCallsTurnedAway", bars=True),
            panel("Breaker changes", "short", "Breakers of hosted servers that opened (calls were lost in a row) or closed.",
                  (increase("mcp_server_hosted_breaker_changes_total", "to"), "to {{to}}"),
                  alert="FleetHostedServerBreaker", bars=True),
            panel("Policy reloads", "short", "Changes of the policy file that were applied, or were invalid.",
                  (increase("mcp_server_policy_reloads_total", "outcome"), "{{outcome}}"),
                  alert="FleetPolicyInvalid", bars=True),
        ),
        row(
            "HTTP",
            panel("Requests by route", "reqps", "HTTP requests a second by route, without probes and scrapes.",
                  (rate(f"{http}_count", "http_route"), "{{http_route}}"), stack=True),
            panel("Requests by status", "reqps", "HTTP requests a second by status.",
                  (rate(f"{http}_count", "http_response_status_code"), "{{http_response_status_code}}"),
                  alert="FleetServerErrors", stack=True),
            panel("Time by route", "s", "95 of 100 requests of a route take less, from the request to the beginning of the answer.",
                  (quantile(0.95, http, "http_route"), "{{http_route}}")),
            panel("Sessions", "short", "Sessions of clients that speak older revisions of the protocol.", each("mcp_server_sessions")),
            panel("Connections", "short", "Open HTTP connections of each server, those of probes and scrapes included. At 768 new "
                  "ones are turned away.",
                  each("fleet_http_connections"), steps=[(None, "green"), (700, "red")], alert="FleetConnectionsTurnedAway"),
            panel("Connections turned away", "short", "Requests answered with 503 because too many connections were open.",
                  (increase("fleet_http_busy_total", "instance"), "{{instance}}"), alert="FleetConnectionsTurnedAway", bars=True),
        ),
        row(
            "Jobs",
            panel("Submitted", "ops", "Jobs a second that were submitted through the server; `existing` were recognised as repeats.",
                  (rate("mcp_server_jobs_submitted_total", "outcome"), "{{outcome}}"), stack=True),
            panel("Repeats answered from memory", "ops", "Calls a second that a job repeated and that were answered with the remembered result.",
                  (rate("mcp_server_repeats_answered_total", "instance"), "{{instance}}")),
            panel("Memory for repeats", "bytes", "Bytes of remembered results; MCP_REPEAT_MAX_BYTES at most.",
                  each("mcp_server_repeat_memory_bytes")),
            panel("Ledger", "short", "Jobs in the ledger by state. Every replica has all of them.",
                  (f"max by (state) (mcp_server_ledger_jobs{{{HERE}}})", "{{state}}"), stack=True),
            panel("Ledger behind", "short", "Events that a replica has not read yet.",
                  each("mcp_server_ledger_behind"), steps=[(None, "green"), (1000, "red")], alert="FleetLedgerBehind"),
            panel("Forgotten by the ledger", "short", "Jobs that the ledger has forgotten: ended ones by age or for want of room, open ones "
                  "only if it is too small.",
                  (increase("mcp_server_ledger_forgotten_total", "what"), "{{what}}"), alert="FleetLedgerTooSmall", bars=True),
        ),
    )


def main():
    """Writes the files, or says which ones differ."""
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
