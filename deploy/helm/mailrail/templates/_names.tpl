{{/* Names and labels. */}}
{{- define "mailrail.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "mailrail.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "mailrail.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "mailrail.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "mailrail.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{/* Of one thing in the cluster that belongs to no namespace: two releases may have the same name. */}}
{{- define "mailrail.clusterName" -}}
{{- printf "%s-%s" (include "mailrail.namespace" .) (include "mailrail.fullname" .) }}
{{- end }}

{{- define "mailrail.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* (dict "root" $ "component" "queue") */}}
{{- define "mailrail.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mailrail.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "mailrail.labels" -}}
{{ include "mailrail.selectorLabels" . }}
app.kubernetes.io/part-of: mailrail
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ include "mailrail.chart" .root }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "component" "queue" "name" "..." ["annotations" dict]) */}}
{{- define "mailrail.metadata" -}}
name: {{ .name }}
namespace: {{ .namespace | default (include "mailrail.namespace" .root) }}
labels:
  {{- include "mailrail.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) (default (dict) .root.Values.commonAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "image" .Values.queue.image) */}}
{{- define "mailrail.image" -}}
{{- $own := default (dict) .image }}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) $own }}
{{- if and (or $own.repository $own.tag) (not $own.digest) }}
{{- $_ := set $image "digest" "" }}{{/* it is that of another image */}}
{{- end }}
{{- $registry := .root.Values.global.imageRegistry | default $image.registry }}
{{- $name := ternary (printf "%s/%s" $registry $image.repository) $image.repository (ne (toString $registry) "") }}
{{- if $image.digest }}
{{- printf "%s@%s" $name $image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion $image.tag | toString) }}
{{- end }}
{{- end }}

{{- define "mailrail.pullPolicy" -}}
{{- (mergeOverwrite (deepCopy .root.Values.image) (default (dict) .image)).pullPolicy }}
{{- end }}

{{- define "mailrail.serviceAccountName" -}}
{{- if .values.serviceAccount.create }}
{{- default (printf "%s-%s" (include "mailrail.fullname" .root) .component) .values.serviceAccount.name }}
{{- else }}
{{- default "default" .values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Where a service is found: all its pods, by name, so that clients balance among them. The dot at the end spares the
     resolver the search list. (dict "root" $ "component" "queue") */}}
{{- define "mailrail.host" -}}
{{- printf "%s-%s.%s.svc.%s." (include "mailrail.fullname" .root) .component (include "mailrail.namespace" .root) .root.Values.clusterDomain }}
{{- end }}
{{- define "mailrail.target" -}}
{{- printf "dns:///%s:%v" (include "mailrail.host" .) (include "mailrail.grpcPort" .component) }}
{{- end }}
{{- define "mailrail.grpcPort" -}}
{{- get (dict "config" "7001" "queue" "7002" "ingress" "7003" "outbound" "7004" "policy" "7005") . }}
{{- end }}

{{/* Whether policies are served. Who gave Secrets to a release that had no such service yet goes on without it. */}}
{{- define "mailrail.policyEnabled" -}}
{{- if and .Values.policy.enabled (or (ne .Values.mtls.mode "existing") .Values.mtls.existingSecrets.policy) -}}
true
{{- end }}
{{- end }}

{{/* Nobody here may open a port below 1024: a gateway's 25 is the pod's 2525. Ingress opens what this says, and the operator
     finds listeners that end at one real port. */}}
{{- define "mailrail.portMap" -}}
25=2525,587=2587,465=2465
{{- end }}

{{/* The address to listen on with every family that pods have. */}}
{{- define "mailrail.any" -}}
{{- ternary "[::]" "0.0.0.0" (has "IPv6" .Values.ipFamilies) }}
{{- end }}

{{/* The bundled Postgres. Values that name another volume name another one, which stands beside the first: Kubernetes changes
     no claim of a StatefulSet, and the one with the mail must go on meanwhile. What is default here stays so for ever, or
     every installation would get another Postgres. */}}
{{- define "mailrail.postgresComponent" -}}
{{- $p := .Values.postgres.bundled.persistence }}
{{- if not $p.enabled -}}
pg-novolume
{{- else if or $p.existingClaim $p.storageClassName (ne $p.size "8Gi") -}}
pg-{{ printf "%s %s %s" $p.existingClaim (ternary "" $p.storageClassName (ne $p.existingClaim "")) (ternary "" $p.size (ne $p.existingClaim "")) | sha256sum | trunc 6 }}
{{- else -}}
postgres
{{- end }}
{{- end }}
{{- define "mailrail.postgresName" -}}
{{- printf "%s-%s" (include "mailrail.fullname" .) (include "mailrail.postgresComponent" .) }}
{{- end }}
{{/* On the pod of every bundled Postgres, whatever its volume. */}}
{{- define "mailrail.postgresLabel" -}}
mailrail.dev/postgres: bundled
{{- end }}
{{- define "mailrail.postgresDomain" -}}
{{- printf ".%s.svc.%s" (include "mailrail.namespace" .) .Values.clusterDomain }}
{{- end }}
{{/* The claim with all mail: empty where it has no volume. */}}
{{- define "mailrail.postgresClaim" -}}
{{- $p := .Values.postgres.bundled.persistence }}
{{- if and (eq .Values.postgres.mode "bundled") $p.enabled }}
{{- default (printf "data-%s-0" (include "mailrail.postgresName" .)) $p.existingClaim }}
{{- end }}
{{- end }}
{{/* What neither Helm nor Argo CD may delete, for all mail is in it or behind it. */}}
{{- define "mailrail.keep" -}}
{{- dict "helm.sh/resource-policy" "keep" "argocd.argoproj.io/sync-options" "Prune=false,Delete=false" | toJson }}
{{- end }}

{{/* The place of the database that these values name, and the ConfigMap that says which one services use: `mailrail cluster
     database` writes it, and pods wait for their place. */}}
{{- define "mailrail.databasePlace" -}}
{{- if eq .Values.postgres.mode "bundled" -}}
bundled.{{ include "mailrail.postgresName" . }}
{{- else -}}
{{- $e := .Values.postgres.external -}}
external.{{ printf "%s %s %v %s" $e.existingSecret $e.host (ternary $e.port "" (ne $e.host "")) (ternary $e.database "" (ne $e.host "")) | sha256sum | trunc 12 }}
{{- end }}
{{- end }}
{{- define "mailrail.databaseRecord" -}}
{{- printf "%s-database" (include "mailrail.fullname" .) }}
{{- end }}

{{/* Names of Secrets: given, made by cert-manager, or made by the keys job. */}}
{{- define "mailrail.tlsSecret" -}}
{{- if eq .root.Values.mtls.mode "existing" }}
{{- required (printf "mtls.mode is existing: name the Secret of %s in mtls.existingSecrets.%s" .role .role) (get .root.Values.mtls.existingSecrets .role) }}
{{- else if eq .root.Values.mtls.mode "certManager" }}
{{- /* Not those of the keys job: each leaves alone what the other made, and a change of the mode would change nothing. */}}
{{- printf "%s-cert-manager-%s-tls" (include "mailrail.fullname" .root) .role }}
{{- else }}
{{- printf "%s-%s-tls" (include "mailrail.fullname" .root) .role }}
{{- end }}
{{- end }}
{{- define "mailrail.sealingSecret" -}}
{{- default (printf "%s-sealing-keys" (include "mailrail.fullname" .)) .Values.sealingKeys.existingSecret }}
{{- end }}
{{- define "mailrail.smtpSecret" -}}
{{- printf "%s-smtp-tls" (include "mailrail.fullname" .) }}
{{- end }}

{{/* What the keys job makes; empty when everything was given. */}}
{{- define "mailrail.keyParts" -}}
{{- $parts := list }}
{{- if eq .Values.mtls.mode "generated" }}{{ $parts = append $parts "mtls" }}{{ end }}
{{- if not .Values.sealingKeys.existingSecret }}{{ $parts = append $parts "sealing" }}{{ end }}
{{- if eq .Values.smtpCertificate.mode "generated" }}{{ $parts = append $parts "smtp" }}{{ end }}
{{- if and (eq .Values.postgres.mode "bundled") (not .Values.postgres.bundled.existingSecret) }}{{ $parts = append $parts "postgres" }}{{ end }}
{{- join "," $parts }}
{{- end }}

{{/* Whether `helm test` can send a message: it comes in through the mx Service. */}}
{{- define "mailrail.tested" -}}
{{- if and .Values.test.enabled .Values.smtp.mx.enabled .Values.smtp.mx.ports.smtp.enabled }}true{{ end }}
{{- end }}

{{/* Names in the self-made SMTP certificate. */}}
{{- define "mailrail.smtpNames" -}}
{{- $names := .Values.smtpCertificate.names }}
{{- if not $names }}
{{- range $service := list "mx" "submission" }}
{{- $host := printf "%s-%s" (include "mailrail.fullname" $) $service }}
{{- $names = concat $names (list $host (printf "%s.%s.svc" $host (include "mailrail.namespace" $)) (printf "%s.%s.svc.%s" $host (include "mailrail.namespace" $) $.Values.clusterDomain)) }}
{{- end }}
{{- end }}
{{- join "," $names }}
{{- end }}
