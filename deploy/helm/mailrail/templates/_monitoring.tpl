{{/* The installation on its dashboards: NAMESPACE/RELEASE. */}}
{{- define "mailrail.installation" -}}
{{ include "mailrail.namespace" . }}/{{ .Release.Name }}
{{- end }}

{{/* The uid of a dashboard (dict "root" $ "name" "queue"). Grafana refuses a uid that is there already, so that of two
     releases differ. At most 40 characters. */}}
{{- define "mailrail.dashboardUid" -}}
mailrail-{{ .name }}{{ if not .root.Values.dashboards.shared }}-{{ include "mailrail.installation" .root | sha256sum | trunc 8 }}{{ end }}
{{- end }}

{{/* The id of a panel by its title, as scripts/grafana/panels.py has it. */}}
{{- define "mailrail.panelId" -}}
{{ mod (adler32sum . | int64) 1000000 }}
{{- end }}

{{/* Not empty when the operator sends probes: there is a Service to send them to. */}}
{{- define "mailrail.mailProbe" -}}
{{- if and .Values.operator.mailProbe .Values.smtp.mx.enabled .Values.smtp.mx.ports.smtp.enabled }}true{{ end }}
{{- end }}
