{{/* Pods, all made the same way. */}}

{{- define "mailrail.podSecurity" -}}
{{- toYaml .Values.podSecurityContext }}
{{- end }}

{{/* Environment that reaches an external Postgres. The URL is that of the Secret, or libpq's own variables where it has none. */}}
{{- define "mailrail.database" -}}
{{- $p := .Values.postgres }}
{{- $secret := include "mailrail.databaseSecret" . }}
{{- if not $p.external.host }}
- name: MAILRAIL_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $p.external.keys.uri }}}}
{{- else }}
- {name: PGHOST, value: {{ $p.external.host | quote }}}
- {name: PGPORT, value: {{ $p.external.port | quote }}}
- {name: PGDATABASE, value: {{ $p.external.database | quote }}}
- name: PGUSER
{{- if $p.external.username }}
  value: {{ $p.external.username | quote }}
{{- else }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $p.external.keys.username }}}}
{{- end }}
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $p.external.keys.password }}}}
- {name: MAILRAIL_DATABASE_URL, value: "postgresql://"}
{{- end }}
{{- include "mailrail.databaseTls" . }}
{{- end }}
{{/* The password comes from elsewhere. */}}
{{- define "mailrail.bundledUrl" -}}
{{- printf "postgresql://mailrail@%s%s:5432/mailrail" (include "mailrail.postgresName" .) (include "mailrail.postgresDomain" .) }}
{{- end }}
{{- define "mailrail.databaseTls" -}}
{{- $p := .Values.postgres }}
{{- if eq $p.mode "external" }}
{{- with $p.external.sslMode }}
- {name: PGSSLMODE, value: {{ . | quote }}}
{{- end }}
{{- if $p.external.caSecret.name }}
- {name: PGSSLROOTCERT, value: /etc/mailrail/postgres/{{ $p.external.caSecret.key }}}
{{- end }}
{{- end }}
{{- end }}

{{/* The same for a service: what is secret is mounted, because a container whose environment is made of Secrets cannot be
     started again while the API server is away. */}}
{{- define "mailrail.databaseKeys" -}}
{{- $e := .Values.postgres.external }}
{{- if eq .Values.postgres.mode "bundled" }}
- {key: password, path: password}
{{- else if not $e.host }}
- {key: {{ $e.keys.uri }}, path: uri}
{{- else }}
{{- if not $e.username }}
- {key: {{ $e.keys.username }}, path: username}
{{- end }}
- {key: {{ $e.keys.password }}, path: password}
{{- end }}
{{- end }}
{{- define "mailrail.databaseSecret" -}}
{{- $p := .Values.postgres }}
{{- if and (eq $p.mode "external") (not $p.external.existingSecret) }}
{{- fail "postgres.mode is external: name the Secret with its login in postgres.external.existingSecret (CloudNativePG writes <cluster>-app)" }}
{{- end }}
{{- ternary (include "mailrail.bundledSecret" .) $p.external.existingSecret (eq $p.mode "bundled") }}
{{- end }}
{{- define "mailrail.bundledSecret" -}}
{{- default (printf "%s-postgres" (include "mailrail.fullname" .)) .Values.postgres.bundled.existingSecret }}
{{- end }}
{{- define "mailrail.databaseOfService" -}}
{{- $e := .Values.postgres.external }}
{{- if eq .Values.postgres.mode "bundled" }}
- {name: MAILRAIL_DATABASE_URL, value: {{ include "mailrail.bundledUrl" . | quote }}}
- {name: MAILRAIL_DATABASE_PASSWORD_FILE, value: /etc/mailrail/database/password}
{{- else if not $e.host }}
- {name: MAILRAIL_DATABASE_URL_FILE, value: /etc/mailrail/database/uri}
{{- else }}
- {name: PGHOST, value: {{ $e.host | quote }}}
- {name: PGPORT, value: {{ $e.port | quote }}}
- {name: PGDATABASE, value: {{ $e.database | quote }}}
- {name: MAILRAIL_DATABASE_URL, value: "postgresql://"}
{{- if $e.username }}
- {name: MAILRAIL_DATABASE_USER, value: {{ $e.username | quote }}}
{{- else }}
- {name: MAILRAIL_DATABASE_USER_FILE, value: /etc/mailrail/database/username}
{{- end }}
- {name: MAILRAIL_DATABASE_PASSWORD_FILE, value: /etc/mailrail/database/password}
{{- end }}
{{- include "mailrail.databaseTls" . }}
{{- end }}

{{- define "mailrail.databaseVolume" -}}
{{- if and (eq .Values.postgres.mode "external") .Values.postgres.external.caSecret.name }}
- name: postgres-ca
  secret: {secretName: {{ .Values.postgres.external.caSecret.name }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- define "mailrail.databaseMount" -}}
{{- if and (eq .Values.postgres.mode "external") .Values.postgres.external.caSecret.name }}
- {name: postgres-ca, mountPath: /etc/mailrail/postgres, readOnly: true}
{{- end }}
{{- end }}

{{/* What every kind of pod may be told. (dict "root" $ "values" .Values.queue) */}}
{{- define "mailrail.placement" -}}
{{- $v := .values }}
{{- with concat (default (list) .root.Values.global.imagePullSecrets) (default (list) .root.Values.image.pullSecrets) }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $v.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $v.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $v.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.affinity }}
affinity:
  {{- tpl (toYaml .) $.root | nindent 2 }}
{{- end }}
{{- with $v.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with $v.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if not (kindIs "invalid" $v.hostUsers) }}
hostUsers: {{ $v.hostUsers }}
{{- end }}
{{- end }}

{{/* A service as a Deployment.
     (dict "root" $ "component" "queue" "values" .Values.queue "health" "mailrail.queue.v1.EnqueueService"
           "env" "yaml list" "ports" "yaml list" "sealing" bool "database" bool "cache" bool "api" bool "sidecars" "yaml list"
           "volumes" "yaml list" "mounts" "yaml list") */}}
{{- define "mailrail.deployment" -}}
{{- $root := .root }}
{{- $v := .values }}
{{- $name := printf "%s-%s" (include "mailrail.fullname" .root) .component }}
{{- $any := include "mailrail.any" .root }}
{{- if lt (int $v.terminationGracePeriodSeconds) (add (int $v.preStopSeconds) (int $v.stopGraceSeconds)) }}
{{- fail (printf "%s.terminationGracePeriodSeconds is less than preStopSeconds and stopGraceSeconds together: pods would be killed in the middle of their work" .component) }}
{{- end }}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "mailrail.metadata" (dict "root" .root "component" .component "name" $name "annotations" $v.annotations) | nindent 2 }}
spec:
  {{- if not (or (dig "autoscaling" "enabled" false $v) (dig "keda" "enabled" false $v)) }}
  replicas: {{ $v.replicaCount }}
  {{- end }}
  revisionHistoryLimit: {{ $v.revisionHistoryLimit }}
  {{- with $v.strategy }}
  strategy:
    {{- /* The default's rollingUpdate stays beside a type of your own, and Kubernetes refuses both together. */}}
    {{- toYaml (ternary (omit . "rollingUpdate") . (eq (toString .type) "Recreate")) | nindent 4 }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "mailrail.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "mailrail.labels" . | nindent 8 }}
        {{- with $v.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ .component }}
        {{- with .checksum }}
        checksum/config: {{ . }}
        {{- end }}
        {{- with $v.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "mailrail.serviceAccountName" . }}
      automountServiceAccountToken: {{ .api | default false }}
      # Variables like MAILRAIL_QUEUE_PORT, made of Services, would pass for settings.
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $v.terminationGracePeriodSeconds }}
      securityContext:
        {{- include "mailrail.podSecurity" .root | nindent 8 }}
      {{- include "mailrail.placement" . | nindent 6 }}
      {{- with $v.topologySpreadConstraints }}
      topologySpreadConstraints:
        {{- tpl (toYaml .) $root | nindent 8 }}
      {{- else }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "mailrail.selectorLabels" . | nindent 14 }}
      {{- end }}
      {{- if or .sidecars $v.initContainers }}
      initContainers:
        {{- with .sidecars }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $v.initContainers }}
        {{- tpl (toYaml .) $root | nindent 8 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "mailrail.image" (dict "root" .root "image" $v.image) }}
          imagePullPolicy: {{ include "mailrail.pullPolicy" (dict "root" .root "image" $v.image) }}
          args: [serve, {{ .component }}{{ range $v.extraArgs }}, {{ . | quote }}{{ end }}]
          securityContext:
            {{- toYaml .root.Values.containerSecurityContext | nindent 12 }}
          env:
            - name: MAILRAIL_NODE_ID
              valueFrom: {fieldRef: {fieldPath: metadata.name}}
            - name: POD_IP
              valueFrom: {fieldRef: {fieldPath: status.podIP}}
            - {name: MAILRAIL_TLS_DIR, value: /etc/mailrail/tls}
            {{- if ne .component "operator" }}
            - {name: MAILRAIL_GRPC_LISTEN, value: "{{ $any }}:{{ include "mailrail.grpcPort" .component }}"}
            - {name: MAILRAIL_HEALTH_LISTEN, value: "{{ $any }}:8081"}
            {{- end }}
            - {name: MAILRAIL_METRICS_LISTEN, value: "{{ $any }}:9100"}
            {{- if ne .component "config" }}
            - {name: MAILRAIL_CONFIG_TARGET, value: {{ include "mailrail.target" (dict "root" .root "component" "config") | quote }}}
            {{- end }}
            {{- if .sealing }}
            - {name: MAILRAIL_SEALING_KEYS_DIR, value: /etc/mailrail/sealing-keys}
            {{- end }}
            {{- if .cache }}
            - {name: MAILRAIL_CACHE_DIR, value: /var/cache/mailrail}
            {{- end }}
            - {name: MAILRAIL_LOG_FORMAT, value: {{ .root.Values.log.format }}}
            - {name: MAILRAIL_LOG_LEVEL, value: {{ default .root.Values.log.level $v.logLevel }}}
            - {name: MAILRAIL_STOP_GRACE, value: {{ $v.stopGraceSeconds | quote }}}
            {{- with .env }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- if .database }}
            {{- include "mailrail.databaseOfService" .root | nindent 12 }}
            {{- end }}
            {{- range $key, $value := $v.settings }}
            - {name: {{ printf "MAILRAIL_%s_%s" (upper $.component) (upper $key) }}, value: {{ kindIs "float64" $value | ternary ($value | toJson) $value | toString | quote }}}
            {{- end }}
            {{- with $v.extraEnv }}
            {{- tpl (toYaml .) $root | nindent 12 }}
            {{- end }}
          {{- with $v.extraEnvFrom }}
          envFrom:
            {{- tpl (toYaml .) $root | nindent 12 }}
          {{- end }}
          ports:
            {{- if ne .component "operator" }}
            - {name: grpc, containerPort: {{ include "mailrail.grpcPort" .component }}}
            {{- end }}
            - {name: health, containerPort: 8081}
            - {name: metrics, containerPort: 9100}
            {{- with .ports }}
            {{- . | nindent 12 }}
            {{- end }}
          {{- $live := dict "grpc" (dict "port" 8081) }}
          {{- $ready := dict "grpc" (dict "port" 8081 "service" .health) }}
          {{- if eq .component "operator" }}
          {{- $live = dict "httpGet" (dict "path" "/livez" "port" "health") }}
          {{- $ready = dict "httpGet" (dict "path" "/readyz" "port" "health") }}
          {{- end }}
          startupProbe:
            {{- toYaml (merge (deepCopy $v.startupProbe) $live) | nindent 12 }}
          livenessProbe:
            {{- toYaml (merge (deepCopy $v.livenessProbe) $live) | nindent 12 }}
          readinessProbe:
            {{- toYaml (merge (deepCopy $v.readinessProbe) $ready) | nindent 12 }}
          {{- if $v.preStopSeconds }}
          # Until no node sends anything new to this pod; only then is it told to stop.
          lifecycle: {preStop: {sleep: {seconds: {{ $v.preStopSeconds }}}}}
          {{- end }}
          {{- with $v.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          volumeMounts:
            - {name: tls, mountPath: /etc/mailrail/tls, readOnly: true}
            {{- if .sealing }}
            - {name: sealing-keys, mountPath: /etc/mailrail/sealing-keys, readOnly: true}
            {{- end }}
            {{- if .cache }}
            - {name: cache, mountPath: /var/cache/mailrail}
            {{- end }}
            {{- if .database }}
            - {name: database, mountPath: /etc/mailrail/database, readOnly: true}
            {{- if eq .root.Values.migrations.mode "job" }}
            - {name: database-in-use, mountPath: /etc/mailrail/database-in-use, readOnly: true}
            {{- end }}
            {{- include "mailrail.databaseMount" .root | nindent 12 }}
            {{- end }}
            - {name: tmp, mountPath: /tmp}
            {{- with .mounts }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $v.extraVolumeMounts }}
            {{- tpl (toYaml .) $root | nindent 12 }}
            {{- end }}
        {{- with $v.extraContainers }}
        {{- tpl (toYaml .) $root | nindent 8 }}
        {{- end }}
      volumes:
        - name: tls
          secret: {secretName: {{ include "mailrail.tlsSecret" (dict "root" .root "role" .component) }}, defaultMode: 0440}
        {{- if .sealing }}
        - name: sealing-keys
          secret: {secretName: {{ include "mailrail.sealingSecret" .root }}, defaultMode: 0440}
        {{- end }}
        {{- if .cache }}
        # The sealed last good configuration, for a container that starts anew while config is down.
        - name: cache
          emptyDir: {sizeLimit: 256Mi}
        {{- end }}
        {{- if .database }}
        - name: database
          secret:
            secretName: {{ include "mailrail.databaseSecret" .root }}
            defaultMode: 0440
            items:
              {{- include "mailrail.databaseKeys" .root | nindent 14 }}
        {{- if eq .root.Values.migrations.mode "job" }}
        # Until the migrations Job agrees to this database the pod waits, and those of the revision before serve on.
        - name: database-in-use
          configMap:
            name: {{ include "mailrail.databaseRecord" .root }}
            items: [{key: {{ include "mailrail.databasePlace" .root }}, path: place}]
        {{- end }}
        {{- include "mailrail.databaseVolume" .root | nindent 8 }}
        {{- end }}
        - name: tmp
          emptyDir: {sizeLimit: 64Mi}
        {{- with .volumes }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $v.extraVolumes }}
        {{- tpl (toYaml .) $root | nindent 8 }}
        {{- end }}
{{- end }}

{{/* What stands beside a Deployment: its ServiceAccount, the headless Service that clients balance by, PDB, HPA. */}}
{{- define "mailrail.beside" -}}
{{- $v := .values }}
{{- $name := printf "%s-%s" (include "mailrail.fullname" .root) .component }}
{{- if $v.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "mailrail.metadata" (dict "root" .root "component" .component "name" (include "mailrail.serviceAccountName" .) "annotations" $v.serviceAccount.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- if not (has .component (list "operator" "policy")) }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "mailrail.metadata" (dict "root" .root "component" .component "name" $name) | nindent 2 }}
spec:
  clusterIP: None
  ipFamilies: {{ .root.Values.ipFamilies | toJson }}
  ipFamilyPolicy: {{ .root.Values.ipFamilyPolicy }}
  selector:
    {{- include "mailrail.selectorLabels" . | nindent 4 }}
  ports:
    - {name: grpc, port: {{ include "mailrail.grpcPort" .component }}, targetPort: grpc, appProtocol: grpc}
{{- end }}
{{- $scaled := or (dig "autoscaling" "enabled" false $v) (dig "keda" "enabled" false $v) }}
{{- if and $v.podDisruptionBudget.enabled (or $scaled (gt (int $v.replicaCount) 1)) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "mailrail.metadata" (dict "root" .root "component" .component "name" $name) | nindent 2 }}
spec:
  maxUnavailable: {{ $v.podDisruptionBudget.maxUnavailable }}
  # A pod that is not ready anyway must not hold up the drain of its node.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "mailrail.selectorLabels" . | nindent 6 }}
{{- end }}
{{- if dig "autoscaling" "enabled" false $v }}
{{- include "mailrail.replicaBounds" (dict "where" (printf "%s.autoscaling" .component) "values" $v.autoscaling) }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "mailrail.metadata" (dict "root" .root "component" .component "name" $name) | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name }}}
  minReplicas: {{ $v.autoscaling.minReplicas }}
  maxReplicas: {{ $v.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        {{- with $v.autoscaling.targetCPUUtilizationPercentage }}
        target: {type: Utilization, averageUtilization: {{ . }}}
        {{- else }}
        target: {type: AverageValue, averageValue: {{ $v.autoscaling.targetCPU | quote }}}
        {{- end }}
  {{- with $v.autoscaling.behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* (dict "where" "queue.keda" "values" .Values.queue.keda): a schema cannot compare two values. */}}
{{- define "mailrail.replicaBounds" -}}
{{- if gt (int .values.minReplicas) (int .values.maxReplicas) }}
{{- fail (printf "%s: minReplicas (%v) is more than maxReplicas (%v)" .where .values.minReplicas .values.maxReplicas) }}
{{- end }}
{{- end }}
