"""A dashboard as Grafana reads it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grafana.panels import Color, Dashboard, Panel, PanelKind, Query, Row, Steps, Unit

TAG = "mailrail"
Runbooks = Mapping[str, Sequence[tuple[str, str]]]
"""Title of a panel → name and runbook of each alert that it explains."""
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _variables() -> list[dict[str, Any]]:
    def query(name: str, label: str, text: str, **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": _DATASOURCE,
            "definition": text,
            "query": {"query": text, "refId": name},
            "multi": True,
            "includeAll": True,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "refresh": 2,
            "sort": 1,
            "hide": 0,
            **more,
        }

    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "hide": 0,
            "current": {},
        },
        # Outside Kubernetes series have no such label: `.*` matches its absence too.
        # The chart puts its namespace and release into both `regex` and into `allValue`.
        query("namespace", "Namespace", "label_values(mailrail_build_info, namespace)", allValue=".*", regex="/.*/"),
        # No `.*` here: what all processes export (process_*) would come in from everywhere.
        query("job", "Installation", 'label_values(mailrail_build_info{namespace=~"$namespace"}, job)', regex="/.+/"),
    ]


def _annotations() -> list[dict[str, Any]]:
    expr = Query("max(mailrail_config_head_revision) != max(mailrail_config_head_revision offset 1m)").scoped()
    return [
        {
            "name": "Annotations & Alerts",
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
            "type": "dashboard",
        },
        {
            "name": "New configuration",
            "datasource": _DATASOURCE,
            "enable": False,
            "iconColor": "purple",
            "expr": expr,
            "step": "60s",
            "titleFormat": "revision",
            "textFormat": "{{value}}",
            "useValueForTime": False,
        },
    ]


def _thresholds(steps: Steps | None) -> dict[str, Any]:
    chosen = steps or Steps(Color.GOOD, ())
    listed: list[dict[str, Any]] = [{"color": chosen.first.value, "value": None}]
    listed += [{"color": color.value, "value": value} for value, color in chosen.steps]
    return {"mode": "absolute", "steps": listed}


def _target(number: int, query: Query, kind: PanelKind) -> dict[str, Any]:
    instant = kind is not PanelKind.SERIES
    return {
        "refId": chr(ord("A") + number),
        "datasource": _DATASOURCE,
        "editorMode": "code",
        "expr": query.scoped(),
        "legendFormat": query.legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": "table" if kind is PanelKind.TABLE else "time_series",
    }


def _series(panel: Panel) -> dict[str, Any]:
    """Lines over time: the keys of Grafana's field defaults are under `defaults`."""
    defaults: dict[str, Any] = {"color": {"mode": "palette-classic"}, "min": 0}
    if panel.top is not None:
        defaults["max"] = panel.top
    defaults["custom"] = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if panel.unit is Unit.BOOLEAN else "linear",
        "lineWidth": 1,
        "fillOpacity": 20 if panel.stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off"},
    }
    legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]}
    return {"defaults": defaults, "options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}}


def _stat(panel: Panel) -> dict[str, Any]:
    """One number."""
    options = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
        "wideLayout": True,
    }
    return {"defaults": {}, "options": options}


def _table(panel: Panel) -> dict[str, Any]:
    """A row for each series, its value under the panel's title and coloured by the thresholds."""
    organize = {"excludeByName": {"Time": True}, "renameByName": {"Value": panel.title}}
    coloured = {
        "matcher": {"id": "byName", "options": panel.title},
        "properties": [{"id": "custom.cellOptions", "value": {"type": "color-text"}}],
    }
    return {
        "defaults": {"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": False}},
        "options": {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}},
        "overrides": [coloured],
        "transformations": [{"id": "organize", "options": organize}],
    }


_FIRST_ROW = 1_000_001
"""Id of the first heading; those of panels are below."""
_DRAWN = {PanelKind.SERIES: _series, PanelKind.STAT: _stat, PanelKind.TABLE: _table}


def _panel(panel: Panel, runbooks: Sequence[tuple[str, str]], x: int, y: int) -> dict[str, Any]:
    drawn = _DRAWN[panel.kind](panel)
    defaults: dict[str, Any] = {
        "unit": panel.unit.value,
        "thresholds": _thresholds(panel.steps),
        "color": {"mode": "thresholds"},
        "noValue": "–",
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    document = {
        "id": panel.id,
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults | drawn["defaults"], "overrides": drawn.get("overrides", [])},
        "options": drawn["options"],
        "targets": [_target(n, query, panel.kind) for n, query in enumerate(panel.queries)],
    }
    if runbooks:
        document["links"] = [{"title": f"Runbook: {alert}", "url": url, "targetBlank": True} for alert, url in runbooks]
    if "transformations" in drawn:
        document["transformations"] = drawn["transformations"]
    return document


def _panels(rows: Sequence[Row], runbooks: Runbooks) -> Iterator[dict[str, Any]]:
    y = 0
    for number, row in enumerate(rows, _FIRST_ROW):
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            "panels": [],
        }
        y += 1
        x = tallest = 0
        for panel in row.panels:
            if x + panel.width > 24:
                x, y, tallest = 0, y + tallest, 0
            yield _panel(panel, runbooks.get(panel.title, ()), x, y)
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def document(dashboard: Dashboard, runbooks: Runbooks) -> dict[str, Any]:
    """The dashboard as Grafana imports it (schema version 39: Grafana 10.4 and newer)."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.meaning,
        "tags": [TAG],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": _annotations()},
        "links": [
            {
                "type": "dashboards",
                "title": "Mailrail",
                "tags": [TAG],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
            }
        ],
        "panels": list(_panels(dashboard.rows, runbooks)),
    }
