{{- define "baton.labels" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "baton.redis" -}}
{{ .Values.redis.url | default (printf "redis://%s-redis:6379/0" .Release.Name) }}
{{- end }}

{{/* Workers on SGLang have images of their own, built with EXTRA=sglang. */}}
{{- define "baton.image" -}}
{{- $kind := and .isWorker .root.Values.workers.sglang.enabled | ternary "-sglang" "" }}
{{- printf "%sbaton-%s%s:%s" .root.Values.image.registry (.image | default .name) $kind .root.Values.image.tag }}
{{- end }}

{{/* Environment of every process. */}}
{{- define "baton.env" -}}
- {name: REDIS_URL, value: {{ include "baton.redis" .root | quote }}}
- {name: BATON_MODEL, value: {{ .root.Values.model.name | quote }}}
- {name: BATON_MESH__OTLP_ENDPOINT, value: {{ .root.Values.otlpEndpoint | quote }}}
- name: BATON_AUTOSCALE__PREFILL__MIN_REPLICAS
  value: {{ .root.Values.autoscaler.minPrefill | quote }}
- name: BATON_AUTOSCALE__PREFILL__MAX_REPLICAS
  value: {{ .root.Values.autoscaler.maxPrefill | quote }}
- name: BATON_AUTOSCALE__DECODE__MIN_REPLICAS
  value: {{ .root.Values.autoscaler.minDecode | quote }}
- name: BATON_AUTOSCALE__DECODE__MAX_REPLICAS
  value: {{ .root.Values.autoscaler.maxDecode | quote }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- if .root.Values.serviceMonitor.enabled }}
- {name: OTEL_METRICS_EXPORTER, value: prometheus}
- {name: OTEL_EXPORTER_PROMETHEUS_HOST, value: 0.0.0.0}
- {name: OTEL_EXPORTER_PROMETHEUS_PORT, value: "9464"}
{{- end }}
{{- if .root.Values.tls.secretName }}
- {name: BATON_TLS_DIR, value: /tls}
{{- end }}
{{- if .root.Values.workers.sglang.enabled }}
- {name: BATON_ENGINE__KIND, value: sglang}
- {name: BATON_ENGINE__SGLANG, value: {{ .root.Values.workers.sglang.arguments | toJson | quote }}}
{{- end }}
{{- range $name, $value := .root.Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{/* The pod of one of Baton's processes; isFollower: it only computes for another pod's engine. */}}
{{- define "baton.pod" -}}
metadata:
  labels: {{- include "baton.labels" . | nindent 4 }}
spec:
  automountServiceAccountToken: {{ .hasAccount | default false }}
  {{- if .hasAccount }}
  serviceAccountName: {{ .root.Release.Name }}-autoscaler
  {{- end }}
  terminationGracePeriodSeconds: {{ .isWorker | ternary .root.Values.workers.drainSeconds 30 }}
  securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
  {{- if .isWorker }}
  {{- with .root.Values.workers.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.workers.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  containers:
    - name: {{ .name }}
      image: {{ include "baton.image" . | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        - --host=0.0.0.0
        - --port={{ .port }}
        - --name=$(POD_NAME)
        {{- if not .isHttp }}
        - --advertise=$(POD_IP):{{ .port }}
        {{- end }}
        {{- range .args }}
        - {{ . | quote }}
        {{- end }}
      env:
        {{- include "baton.env" . | nindent 8 }}
        {{- if .isWorker }}
        {{- range $name, $value := (ne .root.Values.workers.rdma.resource "" | ternary .root.Values.workers.rdma.env dict) }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
        {{- end }}
      ports:
        - {name: {{ .isHttp | ternary "http" "grpc" }}, containerPort: {{ .port }}}
        {{- if .root.Values.serviceMonitor.enabled }}
        - {name: metrics, containerPort: 9464}
        {{- end }}
      {{- if .isFollower }}
      {{- /* It serves nobody: its engine ends with the leader's, and it with that. */}}
      {{- else if .isHttp }}
      readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 5}
      livenessProbe: {httpGet: {path: /livez, port: http}, periodSeconds: 10}
      {{- else }}
      readinessProbe:
        exec: {command: [python, -m, baton.rpc.probe, "127.0.0.1:{{ .port }}", {{ .service }}]}
        periodSeconds: 5
        timeoutSeconds: 5
      livenessProbe: {tcpSocket: {port: grpc}, periodSeconds: 10, failureThreshold: 6}
      startupProbe:
        tcpSocket: {port: grpc}
        periodSeconds: 5
        failureThreshold: {{ div (.isWorker | ternary .root.Values.workers.startSeconds 60) 5 }}
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          {{- if and .isWorker .root.Values.workers.rdma.resource }}
          add: [IPC_LOCK]
          {{- end }}
      resources:
        requests:
          {{- toYaml .resources.requests | nindent 10 }}
        limits:
          {{- toYaml .resources.limits | nindent 10 }}
          {{- if .isWorker }}
          {{- if .root.Values.workers.gpus }}
          {{ .root.Values.workers.gpuResource }}: {{ .root.Values.workers.gpus }}
          {{- end }}
          {{- with .root.Values.workers.rdma.resource }}
          {{ . }}: 1
          {{- end }}
          {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if .isWorker }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
        {{- if and .hasModel .root.Values.model.volume }}
        - {name: model, mountPath: /models, readOnly: true}
        {{- end }}
        {{- if .root.Values.tls.secretName }}
        - {name: tls, mountPath: /tls, readOnly: true}
        {{- end }}
  volumes:
    - {name: tmp, emptyDir: {}}
    {{- if .isWorker }}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: 1Gi}}
    {{- end }}
    {{- if and .hasModel .root.Values.model.volume }}
    - name: model
      {{- toYaml .root.Values.model.volume | nindent 6 }}
    {{- end }}
    {{- if .root.Values.tls.secretName }}
    - {name: tls, secret: {secretName: {{ .root.Values.tls.secretName }}}}
    {{- end }}
{{- end }}

{{/* A Deployment of one of Baton's processes; takes root, name, port, service, and options. */}}
{{- define "baton.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .root.Release.Name }}-{{ .name }}
  labels: {{- include "baton.labels" . | nindent 4 }}
spec:
  {{- /* What the autoscaler set outlives an upgrade. */}}
  {{- $replicas := .replicas }}
  {{- if and .isWorker .root.Values.autoscaler.enabled }}
  {{- with lookup "apps/v1" "Deployment" .root.Release.Namespace (printf "%s-%s" .root.Release.Name .name) }}
  {{- $replicas = .spec.replicas }}
  {{- end }}
  {{- end }}
  replicas: {{ $replicas }}
  {{- if .isWorker }}
  # A new worker is ready before an old one drains; only so no capacity is missing meanwhile.
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  progressDeadlineSeconds: {{ add .root.Values.workers.startSeconds 60 }}
  {{- end }}
  selector:
    matchLabels: {{- include "baton.labels" . | nindent 6 }}
  template: {{- include "baton.pod" . | nindent 4 }}
{{- end }}

{{/* Workers that span several machines each, as groups of pods: https://lws.sigs.k8s.io. */}}
{{- define "baton.groups" -}}
{{- $nodes := .root.Values.workers.sglang.nodes }}
{{- $rank := list "nnodes=$(LWS_GROUP_SIZE)" "node_rank=$(LWS_WORKER_INDEX)" "dist_init_addr=$(LWS_LEADER_ADDRESS):5757" }}
{{- $args := .args }}
{{- range $rank }}
{{- $args = append $args (printf "--engine-argument=%s" .) }}
{{- end }}
{{- $pod := merge (dict "args" $args) . }}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata:
  name: {{ .root.Release.Name }}-{{ .name }}
  labels: {{- include "baton.labels" . | nindent 4 }}
spec:
  replicas: {{ .replicas }}
  rolloutStrategy:
    type: RollingUpdate
    rollingUpdateConfiguration: {maxSurge: 1, maxUnavailable: 0}
  leaderWorkerTemplate:
    size: {{ $nodes }}
    # An engine cannot go on without one of its machines.
    restartPolicy: RecreateGroupOnPodRestart
    leaderTemplate: {{- include "baton.pod" $pod | nindent 6 }}
    workerTemplate: {{- include "baton.pod" (merge (dict "isFollower" true) $pod) | nindent 6 }}
{{- end }}

{{/* One pool of workers. */}}
{{- define "baton.workers" -}}
{{- $sglang := .root.Values.workers.sglang }}
{{- if $sglang.enabled }}
{{- $tp := $sglang.arguments.tp_size | default 1 | int }}
{{- $pp := $sglang.arguments.pp_size | default 1 | int }}
{{- if ne (mul $tp $pp) (mul (int .root.Values.workers.gpus) (int $sglang.nodes)) }}
{{- fail (printf "workers.gpus (%v) times workers.sglang.nodes (%v) must be tp_size (%d) times pp_size (%d)" .root.Values.workers.gpus $sglang.nodes $tp $pp) }}
{{- end }}
{{- end }}
{{- if and $sglang.enabled (gt (int $sglang.nodes) 1) }}
{{- if .root.Values.autoscaler.enabled }}
{{- fail "the autoscaler scales Deployments only: set autoscaler.enabled=false with workers.sglang.nodes above 1" }}
{{- end }}
{{- include "baton.groups" . }}
{{- else }}
{{- include "baton.deployment" . }}
{{- end }}
{{- end }}
