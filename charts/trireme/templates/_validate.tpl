{{/* Values that contradict one another, each with what to do; values.schema.json refuses what is wrong by itself. */}}
{{- define "trireme.validate" -}}
{{- $found := concat (include "trireme.validate.access" . | fromJsonArray) (include "trireme.validate.operator" . | fromJsonArray) (include "trireme.validate.monitoring" . | fromJsonArray) -}}
{{- if $found -}}
{{- fail (printf "\n\nThese values of the trireme chart contradict one another:\n- %s\n" (join "\n- " $found)) -}}
{{- end -}}
{{- end -}}

{{- define "trireme.validate.access" -}}
{{- $v := .Values -}}
{{- $found := list -}}
{{- if and (not $v.crds.enabled) (not $v.crds.keep) -}}
{{- $found = append $found "crds.keep=false has CRDs deleted with the release, but with crds.enabled=false the release has none: set crds.keep=true, or crds.enabled=true" -}}
{{- end -}}
{{- /* Helm deletes what is no longer in a release unless the object itself says that it is kept. */ -}}
{{- if and .Release.IsUpgrade (not $v.crds.enabled) $v.rbac.clusterRoles -}}
{{- range $path, $_ := .Files.Glob "files/crds/*.yaml" -}}
{{- $name := printf "%s.trireme.dev" (base $path | trimPrefix "trireme.dev_" | trimSuffix ".yaml") -}}
{{- with lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $name -}}
{{- $notes := default (dict) .metadata.annotations -}}
{{- $ours := and (eq (get $notes "meta.helm.sh/release-name") $.Release.Name) (eq (get $notes "meta.helm.sh/release-namespace") $.Release.Namespace) -}}
{{- if and $ours (ne (get $notes "helm.sh/resource-policy") "keep") -}}
{{- $found = append $found (printf "crds.enabled=false would delete the CRD %s, and with it all objects of its kind: upgrade with crds.enabled=true and crds.keep=true first" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $v.rbac.clusterRoles -}}
{{- if and $v.rbac.create (not $v.watchNamespaces) -}}
{{- $found = append $found "rbac.clusterRoles=false needs watchNamespaces: serving the whole cluster takes a ClusterRole" -}}
{{- end -}}
{{- if $v.rbac.nodes -}}
{{- $found = append $found "rbac.nodes=true takes a ClusterRole, which rbac.clusterRoles=false forbids: leave rbac.nodes out" -}}
{{- end -}}
{{- if $v.rbac.userRoles -}}
{{- $found = append $found "rbac.userRoles=true takes ClusterRoles, which rbac.clusterRoles=false forbids: leave rbac.userRoles out" -}}
{{- end -}}
{{- end -}}
{{- if and (not $v.rbac.create) (or $v.rbac.nodes $v.rbac.userRoles) -}}
{{- $found = append $found "rbac.create=false makes no roles, so rbac.nodes and rbac.userRoles have to be left out" -}}
{{- end -}}
{{- if and (not $v.serviceAccount.create) (not $v.serviceAccount.name) -}}
{{- $found = append $found "serviceAccount.create=false needs serviceAccount.name: the rights of the operator are not for the namespace's default account" -}}
{{- end -}}
{{- if and $v.networkPolicy.workloads (not $v.watchNamespaces) -}}
{{- $found = append $found "networkPolicy.workloads=true needs watchNamespaces: a NetworkPolicy is for one namespace" -}}
{{- end -}}
{{- with lookup "v1" "Secret" .Release.Namespace (include "trireme.keySecretName" .) -}}
{{- $at := ternary $v.key.existingSecretKey "key" (ne $v.key.existingSecret "") -}}
{{- $bytes := default "" (index (default (dict) .data) $at) | b64dec | len -}}
{{- if lt $bytes 32 -}}
{{- $found = append $found (printf "Secret %s has %d bytes at %s, and the operator needs a key of at least 32" .metadata.name $bytes $at) -}}
{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{- define "trireme.validate.operator" -}}
{{- $o := .Values.operator -}}
{{- $found := list -}}
{{- $times := $o.leaderElection -}}
{{- if not (and (gt (float64 $times.leaseSeconds) (float64 $times.renewDeadlineSeconds)) (gt (float64 $times.renewDeadlineSeconds) (float64 $times.retrySeconds))) -}}
{{- $found = append $found "operator.leaderElection: leaseSeconds > renewDeadlineSeconds > retrySeconds must hold" -}}
{{- end -}}
{{- $budget := $o.podDisruptionBudget -}}
{{- if and (not (kindIs "invalid" $budget.minAvailable)) (not (kindIs "invalid" $budget.maxUnavailable)) -}}
{{- $found = append $found "operator.podDisruptionBudget: only one of minAvailable and maxUnavailable may be set" -}}
{{- end -}}
{{- $stay := $budget.minAvailable -}}
{{- if and $budget.enabled (not (kindIs "invalid" $stay)) (ternary (eq (toString $stay) "100%") (ge (int $stay) (int $o.replicas)) (kindIs "string" $stay)) -}}
{{- $found = append $found (printf "operator.podDisruptionBudget.minAvailable=%v with operator.replicas=%d blocks every drain of a node" $stay (int $o.replicas)) -}}
{{- end -}}
{{- range $o.extraEnv -}}
{{- if has .name (list "POD_NAME" "POD_NAMESPACE" "POD_IP" "HOME") -}}
{{- $found = append $found (printf "operator.extraEnv: %s is set by the chart" .name) -}}
{{- else if hasPrefix "TRIREME_OPERATOR_" .name -}}
{{- $found = append $found (printf "operator.extraEnv: %s would give way to a flag: use the value of that name, or operator.extraArgs" .name) -}}
{{- end -}}
{{- end -}}
{{- $flags := list -}}
{{- range include "trireme.args" . | fromYamlArray -}}
{{- $flags = append $flags (splitList "=" . | first) -}}
{{- end -}}
{{- range $o.extraArgs -}}
{{- if has (splitList "=" . | first) $flags -}}
{{- $found = append $found (printf "operator.extraArgs: %s is set by another value" (splitList "=" . | first)) -}}
{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{- define "trireme.validate.monitoring" -}}
{{- $m := .Values.monitoring -}}
{{- $found := list -}}
{{- if and $m.operator.serviceMonitor.enabled $m.operator.podMonitor.enabled -}}
{{- $found = append $found "monitoring.operator: serviceMonitor and podMonitor would both scrape the operator, so that everything is counted twice: enable one" -}}
{{- end -}}
{{- if and $m.operator.serviceMonitor.enabled (not $m.operator.service.enabled) -}}
{{- $found = append $found "monitoring.operator.serviceMonitor needs monitoring.operator.service: enable it, or take podMonitor" -}}
{{- end -}}
{{- if $m.verifyCRDs -}}
{{- $wanted := list -}}
{{- if $m.operator.serviceMonitor.enabled }}{{ $wanted = append $wanted (list "ServiceMonitor" "monitoring.operator.serviceMonitor") }}{{ end -}}
{{- if $m.operator.podMonitor.enabled }}{{ $wanted = append $wanted (list "PodMonitor" "monitoring.operator.podMonitor") }}{{ end -}}
{{- if $m.workloads.podMonitor.enabled }}{{ $wanted = append $wanted (list "PodMonitor" "monitoring.workloads.podMonitor") }}{{ end -}}
{{- if $m.rules.enabled }}{{ $wanted = append $wanted (list "PrometheusRule" "monitoring.rules") }}{{ end -}}
{{- range $wanted -}}
{{- $api := printf "monitoring.coreos.com/v1/%s" (first .) -}}
{{- if not ($.Capabilities.APIVersions.Has $api) -}}
{{- $found = append $found (printf "%s needs the Prometheus operator's CRD %s, which this cluster does not have: install it first (for `helm template`: --api-versions %s, or monitoring.verifyCRDs=false)" (last .) (first .) $api) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}
