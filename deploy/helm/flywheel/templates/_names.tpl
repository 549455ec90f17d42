{{/*
Names, labels, and what all containers share.
*/}}
{{- define "flywheel.fullname" -}}
{{- if contains "flywheel" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-flywheel" (.Release.Name | trunc 31 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "flywheel.labels" -}}
app.kubernetes.io/name: flywheel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "flywheel.learner.selector" -}}
app.kubernetes.io/name: flywheel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: learner
{{- end -}}

{{- define "flywheel.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-slim" .Chart.AppVersion) }}
{{- end -}}

{{/* The settings, refused early where they cannot work here. */}}
{{- define "flywheel.settings" -}}
{{- if not (regexMatch "(?m)^\\s*bootstrap_servers\\s*=" .Values.settings) -}}
{{- fail "settings needs [kafka] with bootstrap_servers: gateways in other pods reach the learner through a broker only" -}}
{{- end -}}
{{- if not (regexMatch "(?m)^\\s*\\[tasks\\." .Values.settings) -}}
{{- fail "settings needs at least one table [tasks.NAME]" -}}
{{- end -}}
{{ .Values.settings }}
{{- end -}}

{{/* What every container of ours may do: next to nothing. */}}
{{- define "flywheel.securityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Where a container of ours finds its settings. */}}
{{- define "flywheel.env" -}}
- name: FLYWHEEL_CONFIG
  value: /etc/flywheel/flywheel.toml
- name: FLYWHEEL_SECRETS_DIR
  value: /run/flywheel/secrets
- name: FLYWHEEL_DATA_DIR
  value: /var/lib/flywheel
{{- end -}}

{{- define "flywheel.settingsMounts" -}}
- name: flywheel-settings
  mountPath: /etc/flywheel
  readOnly: true
- name: flywheel-secrets
  mountPath: /run/flywheel/secrets
  readOnly: true
{{- end -}}
