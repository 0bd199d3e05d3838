{{/* The name of everything: that of the release. */}}
{{- define "fleetbus.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "fleetbus.selector" -}}
app.kubernetes.io/name: fleetbus
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fleetbus.labels" -}}
{{ include "fleetbus.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* The settings, with what follows from where the nodes run. */}}
{{- define "fleetbus.config" -}}
{{- $name := include "fleetbus.name" . -}}
{{- $routes := list -}}
{{- range $i := until (int .Values.replicas) -}}
{{- $routes = append $routes (printf "%s-%d.%s-nodes.%s.svc:6222" $name $i $name $.Release.Namespace) -}}
{{- end -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "data_dir" "/var/lib/fleetbus" -}}
{{- $_ := set $config "listeners" (merge (dict "metrics" (dict "addr" "0.0.0.0:9422")) (default dict $config.listeners)) -}}
{{- $_ := set $config "cluster" (merge (default dict $config.cluster) (dict "addr" "0.0.0.0:6222" "routes" $routes)) -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What all containers of a pod have in common. */}}
{{- define "fleetbus.container" -}}
{{- $name := include "fleetbus.name" . -}}
env:
  - name: FLEETBUS_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: FLEETBUS_ADVERTISE
    value: $(FLEETBUS_NAME).{{ $name }}-nodes.{{ .Release.Namespace }}.svc
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: data, mountPath: /var/lib/fleetbus}
  - {name: config, mountPath: /etc/fleetbus/fleetbus.yaml, subPath: fleetbus.yaml, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- if not .Values.found }}
  - {name: token, mountPath: /etc/fleetbus/token, readOnly: true}
  {{- end }}
  {{- range .Values.secrets }}
  - {name: secret-{{ . }}, mountPath: /etc/fleetbus/secrets/{{ . }}, readOnly: true}
  {{- end }}
{{- end -}}
