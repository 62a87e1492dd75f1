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
  livenessProbe:
    tcpSocket: {port: dns-tcp}
    periodSeconds: 10
    failureThreshold: 6
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
{{- if .image.digest }}{{ printf "%s@%s" $name .image.digest }}{{ else }}{{ printf "%s:%s" $name (required (printf "%s: name a tag or a digest" $name) .image.tag | toString) }}{{ end }}
{{- end }}
{{- define "mailrail.unboundVolume" -}}
{{- if .Values.unbound.enabled }}
- name: unbound
  configMap: {name: {{ include "mailrail.fullname" . }}-unbound}
{{- end }}
{{- end }}
{{- define "mailrail.unboundConf" -}}
server:
  # Open to the kubelet's probe, which asks nothing; answers go to the pod's own loopback alone.
  interface: {{ ternary "::0" "0.0.0.0" (has "IPv6" .Values.ipFamilies) }}@5335
  {{- if has "IPv6" .Values.ipFamilies }}
  interface: 0.0.0.0@5335
  {{- end }}
  access-control: 0.0.0.0/0 deny
  access-control: ::0/0 deny
  access-control: 127.0.0.0/8 allow
  do-daemonize: no
  use-syslog: no
  logfile: ""
  verbosity: 0
  username: ""
  chroot: ""
  directory: "/tmp"
  pidfile: "/tmp/unbound.pid"
  module-config: "validator iterator"
  {{- range .Values.unbound.trustAnchors }}
  trust-anchor: {{ . | quote }}
  {{- end }}
  harden-dnssec-stripped: yes
  harden-below-nxdomain: yes
  qname-minimisation: yes
  prefetch: yes
  hide-identity: yes
  hide-version: yes
  msg-cache-size: 32m
  rrset-cache-size: 64m
  {{- with .Values.unbound.extraConfig }}
  {{- . | nindent 2 }}
  {{- end }}
remote-control:
  control-enable: no
{{- with .Values.unbound.forwardTo }}
forward-zone:
  name: "."
  {{- range . }}
  forward-addr: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
