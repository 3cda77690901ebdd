{{/* Labels of every object. */}}
{{- define "sluice.labels" -}}
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* An image; takes a list of the root and the part's image. */}}
{{- define "sluice.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/*
What both DaemonSets' pods have in common. Every node needs its network before anything else can run there, so all taints
are tolerated and nothing but another critical pod goes first. Sluice does not run on Fargate, on hybrid nodes or in EKS Auto
Mode, whose network is somebody else's. DNS is the node's: CoreDNS itself has no network before Sluice.
*/}}
{{- define "sluice.pod" -}}
hostNetwork: true
dnsPolicy: Default
priorityClassName: system-node-critical
tolerations:
  - operator: Exists
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: kubernetes.io/os
              operator: In
              values: [linux]
            - key: kubernetes.io/arch
              operator: In
              values: [amd64, arm64]
            - key: eks.amazonaws.com/compute-type
              operator: NotIn
              values: [fargate, hybrid, auto]
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
