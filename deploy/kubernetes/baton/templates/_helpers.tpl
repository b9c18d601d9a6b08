{{- define "baton.labels" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "baton.redis" -}}
{{ .Values.redis.url | default (printf "redis://%s-redis:6379/0" .Release.Name) }}
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
{{- range $name, $value := .root.Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
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
  template:
    metadata:
      labels: {{- include "baton.labels" . | nindent 8 }}
    spec:
      automountServiceAccountToken: {{ .hasAccount | default false }}
      {{- if .hasAccount }}
      serviceAccountName: {{ .root.Release.Name }}-autoscaler
      {{- end }}
      terminationGracePeriodSeconds: {{ .isWorker | ternary .root.Values.workers.drainSeconds 30 }}
      securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
      {{- if .isWorker }}
      {{- with .root.Values.workers.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.workers.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ printf "%sbaton-%s:%s" .root.Values.image.registry .name .root.Values.image.tag | quote }}
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
            {{- include "baton.env" . | nindent 12 }}
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
          {{- if .isHttp }}
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
              {{- toYaml .resources.requests | nindent 14 }}
            limits:
              {{- toYaml .resources.limits | nindent 14 }}
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
          {{- toYaml .root.Values.model.volume | nindent 10 }}
        {{- end }}
        {{- if .root.Values.tls.secretName }}
        - {name: tls, secret: {secretName: {{ .root.Values.tls.secretName }}}}
        {{- end }}
{{- end }}
