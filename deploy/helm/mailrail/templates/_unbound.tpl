{{/* A validating resolver beside each outbound process: what it says was proven comes over the pod's own loopback. */}}
{{- define "mailrail.unbound" -}}
{{- if .Values.unbound.enabled }}
- name: unbound
  image: {{ include "mailrail.foreignImage" (dict "root" . "image" .Values.unbound.image) }}
  imagePullPolicy: {{ .Values.unbound.image.pullPolicy }}
  restartPolicy: Always
  {{- with .Values.unbound.command }}
  command: {{ toJson . }}
  {{- end }}
  {{- with .Values.unbound.args }}
  args: {{ toJson . }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.containerSecurityContext | nindent 4 }}
  ports:
    - {name: dns, containerPort: 5335, protocol: UDP}
    - {name: dns-tcp, containerPort: 5335}
  startupProbe:
    tcpSocket: {port: dns-tcp}
    periodSeconds: 1
    failureThreshold: 60
  {{- with .Values.unbound.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - {name: unbound, mountPath: /etc/unbound-mailrail, readOnly: true}
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- end }}
{{- define "mailrail.foreignImage" -}}
{{- $registry := .root.Values.global.imageRegistry | default .image.registry }}
{{- $name := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne (toString $registry) "") }}
{{- if .image.digest }}{{ printf "%s@%s" $name .image.digest }}{{ else }}{{ printf "%s:%s" $name (toString .image.tag) }}{{ end }}
{{- end }}
{{- define "mailrail.unboundVolume" -}}
{{- if .Values.unbound.enabled }}
- name: unbound
  configMap: {name: {{ include "mailrail.fullname" . }}-unbound}
{{- end }}
{{- end }}
