{{/*
The gateway as a native sidecar of a pod of yours: four pieces to include.

In a chart that has this one as a dependency, pass .Subcharts.flywheel; in this chart, the root.

A pod is out of service while any of its containers is not ready, and a container that has ended is
not. So: no readiness probe here, and a process that starts the gateway again instead of ending.
*/}}

{{/* Of the pod's metadata.labels: by these, metrics, learner and network policies find gateways. */}}
{{- define "flywheel.gateway.labels" -}}
flywheel-gateway: {{ include "flywheel.fullname" . }}
{{- end -}}

{{/* Of the pod's metadata.annotations: other settings, other pods. */}}
{{- define "flywheel.gateway.annotations" -}}
checksum/flywheel: {{ include "flywheel.settings" . | sha256sum }}
{{- end -}}

{{/* One of the pod's initContainers, the last before your own. */}}
{{- define "flywheel.gateway.container" -}}
- name: flywheel
  image: {{ include "flywheel.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always  # what makes it a sidecar: it runs beside the app, and ends after it
  args: [gateway, --keep-running]
  env:
    {{- include "flywheel.env" . | nindent 4 }}
    # Beyond the pod's loopback, for metrics, probes and the learner; hence gateway__keys.
    - name: FLYWHEEL_GATEWAY__HOST
      value: 0.0.0.0
    - name: FLYWHEEL_GATEWAY__PORT
      value: "8700"
    - name: FLYWHEEL_GATEWAY__THREADS
      value: {{ .Values.gateway.threads | quote }}
    - name: FLYWHEEL_GATEWAY__LEARNER_URL
      value: http://{{ include "flywheel.fullname" . }}-learner:8701
    {{- with .Values.gateway.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: flywheel
      containerPort: 8700
  # The app starts once the gateway answers, or when this long is over: it never waits for ever.
  startupProbe:
    exec:
      command:
        - python
        - -m
        - service.host.probe
        - gateway
        - --data-dir=/var/lib/flywheel
        - --within={{ .Values.gateway.startupSeconds }}
        - --let-pass
    timeoutSeconds: {{ add .Values.gateway.startupSeconds 10 }}
    periodSeconds: 5
    failureThreshold: 10
  # A gateway that died is started again within; this is for one that hangs.
  livenessProbe:
    httpGet:
      path: /healthz
      port: 8700
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  securityContext:
    {{- include "flywheel.securityContext" . | nindent 4 }}
  resources:
    {{- toYaml .Values.gateway.resources | nindent 4 }}
  volumeMounts:
    {{- include "flywheel.settingsMounts" . | nindent 4 }}
    - name: flywheel-cache
      mountPath: /var/lib/flywheel
    - name: flywheel-tmp
      mountPath: /tmp
{{- end -}}

{{/*
Of the pod's volumes. The first two are optional: without them the gateway says what is missing, and
your app runs. No limit on the others' size: one that is passed would evict your pod.
*/}}
{{- define "flywheel.gateway.volumes" -}}
- name: flywheel-settings
  configMap:
    name: {{ include "flywheel.fullname" . }}
    optional: true
- name: flywheel-secrets
  secret:
    secretName: {{ .Values.existingSecret }}
    optional: true
- name: flywheel-cache
  emptyDir: {}
- name: flywheel-tmp
  emptyDir: {}
{{- end -}}
