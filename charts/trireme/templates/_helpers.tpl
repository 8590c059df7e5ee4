{{/* The beginning of all names; what is put behind it fits into 63 characters. */}}
{{- define "trireme.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $long := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $long .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The same for objects of the whole cluster: releases that serve some namespaces may be there several times. */}}
{{- define "trireme.clusterName" -}}
{{- $name := include "trireme.fullname" . -}}
{{- if .Values.watchNamespaces -}}
{{- printf "%s-%s" .Release.Namespace $name -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "trireme.operatorName" -}}
{{- printf "%s-operator" (include "trireme.fullname" .) -}}
{{- end -}}

{{- define "trireme.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "trireme.labels" -}}
{{ include "trireme.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: trireme
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of monitors and rules. */}}
{{- define "trireme.monitorLabels" -}}
{{ include "trireme.labels" . }}
{{- with .Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "trireme.serviceAccountName" -}}
{{- default (include "trireme.operatorName" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "trireme.keySecretName" -}}
{{- default (printf "%s-key" (include "trireme.operatorName" .)) .Values.key.existingSecret -}}
{{- end -}}

{{/* A reference to an image: (list $ .Values.x.image). */}}
{{- define "trireme.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := default $image.registry $root.Values.global.imageRegistry | trimSuffix "/" -}}
{{- $name := ternary (printf "%s/%s" $registry $image.repository) $image.repository (ne $registry "") -}}
{{- if or $image.tag (not $image.digest) -}}
{{- $name = printf "%s:%s" $name (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- if $image.digest -}}
{{- $name = printf "%s@%s" $name $image.digest -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* "true" or nothing: a switch of rbac that follows rbac.clusterRoles when it was left out. */}}
{{- define "trireme.seesNodes" -}}
{{- if and .Values.rbac.create (ternary .Values.rbac.clusterRoles .Values.rbac.nodes (kindIs "invalid" .Values.rbac.nodes)) -}}
true
{{- end -}}
{{- end -}}

{{- define "trireme.userRoles" -}}
{{- if and .Values.rbac.create (ternary .Values.rbac.clusterRoles .Values.rbac.userRoles (kindIs "invalid" .Values.rbac.userRoles)) -}}
true
{{- end -}}
{{- end -}}

{{/* Flags of the operator that values set. */}}
{{- define "trireme.args" -}}
{{- $operator := .Values.operator -}}
- --namespaces={{ join "," .Values.watchNamespaces }}
{{ if not (include "trireme.seesNodes" .) -}}
- --may-lack-nodes=true
{{ end -}}
- --trainer-image={{ include "trireme.image" (list . .Values.trainer.image) }}
- --serving-image={{ include "trireme.image" (list . .Values.serving.image) }}
- --image-pull-secrets={{ join "," .Values.global.imagePullSecrets }}
{{- $devices := list -}}
{{- with .Values.devices.resourceName }}{{ $devices = append $devices . }}{{ end -}}
{{- range $kind, $name := .Values.devices.resourceNames }}{{ $devices = append $devices (printf "%s=%s" $kind $name) }}{{ end }}
- --device-resources={{ join "," $devices }}
- --key-file=/etc/trireme-operator/key
- --service-account=/var/run/secrets/kubernetes.io/serviceaccount
- --http-host={{ $operator.httpHost }}
- --http-port={{ int $operator.httpPort }}
- --lease-namespace={{ .Release.Namespace }}
- --lease-name={{ include "trireme.operatorName" . }}
- --lease-seconds={{ $operator.leaderElection.leaseSeconds }}
- --renew-deadline-seconds={{ $operator.leaderElection.renewDeadlineSeconds }}
- --retry-seconds={{ $operator.leaderElection.retrySeconds }}
- --poll-seconds={{ $operator.pollSeconds }}
- --poll-concurrency={{ int $operator.pollConcurrency }}
- --resync-seconds={{ $operator.resyncSeconds }}
- --workers={{ int $operator.workers }}
- --exclude-after-failures={{ int $operator.excludeAfterFailures }}
- --log-level={{ $operator.logLevel }}
{{- end -}}

{{/*
The key's Secret data, base64: what the cluster has, else a new one. It is remembered, so that all templates of one
rendering see the same.
*/}}
{{- define "trireme.key" -}}
{{- if not (hasKey .Values.key "made") -}}
{{- $found := lookup "v1" "Secret" .Release.Namespace (include "trireme.keySecretName" .) -}}
{{- $data := default (dict) (default (dict) $found).data -}}
{{- $_ := set .Values.key "made" (default (randAlphaNum 64 | b64enc) (index $data "key")) -}}
{{- end -}}
{{- .Values.key.made -}}
{{- end -}}

{{/* Namespaces that monitors look into. */}}
{{- define "trireme.namespaceSelector" -}}
namespaceSelector:
{{- if .Values.watchNamespaces }}
  matchNames: {{- toYaml .Values.watchNamespaces | nindent 4 }}
{{- else }}
  any: true
{{- end }}
{{- end -}}
