{{/* Names end in -engine-0 or -gateway-HASH, and a label has at most 63 characters. */}}
{{- define "step-audio.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "step-audio.labels" -}}
{{ include "step-audio.selector" . }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What never changes in a release, for selectors; a component is added to it. */}}
{{- define "step-audio.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The profile's leading number: 4 of 4xH100-16k. */}}
{{- define "step-audio.gpus" -}}
{{ regexFind "^[0-9]+" .Values.profile }}
{{- end }}

{{/* Called with the chart's context and "gpu", "vllm" or "cpu". */}}
{{- define "step-audio.image" -}}
{{- $ := first . -}}
{{ $.Values.image.repository }}:{{ $.Values.image.tag | default $.Chart.AppVersion }}-{{ last . }}
{{- end }}

{{- define "step-audio.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "step-audio.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "step-audio.claim" -}}
{{ .Values.models.existingClaim | default (printf "%s-models" (include "step-audio.name" .)) }}
{{- end }}

{{- define "step-audio.modelsVolume" -}}
- name: models
  {{- if .Values.models.hostPath }}
  hostPath:
    path: {{ .Values.models.hostPath }}
    type: Directory
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ include "step-audio.claim" . }}
  {{- end }}
{{- end }}

{{/* Where the checkpoint is, or where `step-audio build` puts what it downloads: WORK/NAME-REVISION. */}}
{{- define "step-audio.checkpoint" -}}
{{- if .Values.models.checkpoint -}}
/models/{{ .Values.models.checkpoint }}
{{- else -}}
{{- $parts := splitList "@" .Values.models.download -}}
/models/built/{{ base (first $parts) }}-{{ last $parts | replace "/" "-" | trunc 12 }}
{{- end -}}
{{- end }}

{{/* The flags that `step-audio build` and `step-audio serve` must agree on. */}}
{{- define "step-audio.workArgs" -}}
- --profile={{ .Values.profile }}
- --work-dir=/models/built
{{- end }}

{{- define "step-audio.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
{{- end }}

{{/* Requests and limits with the profile's GPUs among the limits; Kubernetes requests what is limited. */}}
{{- define "step-audio.gpuResources" -}}
{{- $gpus := dict "limits" (dict "nvidia.com/gpu" (include "step-audio.gpus" . | int)) -}}
{{ mergeOverwrite (deepCopy .Values.engine.resources) $gpus | toYaml }}
{{- end }}

{{/* Names of all engine pods there may ever be, for the gateway: those that are not there are passed over. One at least,
which the gateway needs to start. */}}
{{- define "step-audio.engineAddresses" -}}
{{- $name := include "step-audio.name" . -}}
{{- $pods := .Values.autoscaling.enabled | ternary .Values.autoscaling.maxReplicas .Values.engine.replicas | max 1 | int -}}
{{- $addresses := list -}}
{{- range $i := until $pods -}}
{{- $host := printf "%s-engine-%d.%s-engine.%s.svc.%s" $name $i $name $.Release.Namespace $.Values.clusterDomain -}}
{{- $addresses = append $addresses (printf "%s%s:8001" (ternary "grpcs://" "" (not (empty $.Values.tls.engineSecret))) $host) -}}
{{- end -}}
{{ join "," $addresses }}
{{- end }}

{{/* The first engine pod's name: one that an engine's certificate has. */}}
{{- define "step-audio.firstEngine" -}}
{{- $name := include "step-audio.name" . -}}
{{ $name }}-engine-0.{{ $name }}-engine.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{/* OpenTelemetry's own variables. */}}
{{- define "step-audio.traceEnv" -}}
{{- if .Values.tracing.endpoint -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.tracing.endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .Values.tracing.ratio | quote }}
{{- end -}}
{{- end }}

{{/* The kubelet's gRPC probes know no TLS; Triton's HTTP port has no inference then, but tells its health. */}}
{{- define "step-audio.engineReady" -}}
{{- if .Values.tls.engineSecret -}}
httpGet:
  path: /v2/health/ready
  port: 8000
{{- else -}}
grpc:
  port: 8001
{{- end -}}
{{- end }}
