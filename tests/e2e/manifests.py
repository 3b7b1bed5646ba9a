#!/usr/bin/env python3
"""The files in deploy/ against a schema: required keys, types, and names, ports and flags that agree with each other and with the
program. Needs PyYAML; without it exits 77 (skipped).

usage: manifests.py POLAR
"""

import pathlib
import re
import subprocess
import sys

from expect import all_held, expect, finish

try:
    import yaml
except ImportError:
    print("PyYAML is not there: skipped")
    sys.exit(77)

deploy = pathlib.Path(__file__).parents[2] / "deploy"
told = subprocess.run([sys.argv[1], "serve", "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
flags = set(re.findall(r"^  (--[a-z-]+)", told, re.MULTILINE))
port = int(re.search(r"--port .*=(\d+)", told).group(1))


class Only(dict):
    """A map in which nothing but the named keys may stand; keys that end with ? may be left out."""


NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGT]i?)?$")
LABELS = {str: str}
META = Only({"name": NAME, "labels?": LABELS})
PROBE = Only({"httpGet": Only({"path": re.compile("/(health|version)$"), "port": "http"}), "periodSeconds?": int,
              "failureThreshold?": int, "timeoutSeconds?": int, "initialDelaySeconds?": int})
CONTAINER = Only({
    "name": NAME, "image": str, "args": [str], "ports": [Only({"name": NAME, "containerPort": int})],
    "env?": [Only({"name": str, "valueFrom?": Only({"secretKeyRef": Only({"name": NAME, "key": str, "optional?": bool})}),
                   "value?": str})],
    "startupProbe": PROBE, "readinessProbe": PROBE, "livenessProbe": PROBE,
    "resources": Only({"requests": {str: QUANTITY}, "limits": {str: QUANTITY}}),
    "securityContext": Only({"allowPrivilegeEscalation": bool, "readOnlyRootFilesystem": bool, "runAsNonRoot": bool,
                             "runAsUser": int}),
    "volumeMounts": [Only({"name": NAME, "mountPath": str, "readOnly": bool})]})
SCHEMAS = {
    ("apps/v1", "Deployment"): Only({
        "apiVersion": str, "kind": str, "metadata": META,
        "spec": Only({"replicas": int, "selector": Only({"matchLabels": LABELS}),
                      "template": Only({"metadata": Only({"labels": LABELS, "annotations?": LABELS}),
                                        "spec": Only({"terminationGracePeriodSeconds": int, "containers": [CONTAINER],
                                                      "volumes": [Only({"name": NAME, "persistentVolumeClaim": Only(
                                                          {"claimName": NAME, "readOnly?": bool})})]})})})}),
    ("v1", "Service"): Only({
        "apiVersion": str, "kind": str, "metadata": META,
        "spec": Only({"selector": LABELS, "ports": [Only({"name": NAME, "port": int, "targetPort": "http"})]})}),
    # gateway-api-inference-extension, inference.networking.k8s.io/v1
    ("inference.networking.k8s.io/v1", "InferencePool"): Only({
        "apiVersion": str, "kind": str, "metadata": META,
        "spec": Only({"selector": Only({"matchLabels": LABELS}), "targetPorts": [Only({"number": int})],
                      "endpointPickerRef": Only({"name": NAME, "port": Only({"number": int}), "kind?": str, "group?": str,
                                                 "failureMode?": re.compile("Fail(Open|Close)$")})})}),
}


def check(value, schema, where):
    if isinstance(schema, Only):
        if not isinstance(value, dict):
            return expect(False, f"{where} is no map")
        names = {key.rstrip("?") for key in schema}
        expect(set(value) <= names, f"{where} holds {sorted(set(value) - names)}, which nothing reads")
        for key, inner in schema.items():
            name = key.rstrip("?")
            if name in value:
                check(value[name], inner, f"{where}.{name}")
            else:
                expect(key.endswith("?"), f"{where}.{name} is missing")
    elif isinstance(schema, dict):
        expect(isinstance(value, dict) and value, f"{where} is no map")
        ((kind, inner),) = schema.items()
        for key, item in value.items():
            check(key, kind, where)
            check(item, inner, f"{where}.{key}")
    elif isinstance(schema, list):
        expect(isinstance(value, list) and value, f"{where} is no list")
        for i, item in enumerate(value):
            check(item, schema[0], f"{where}[{i}]")
    elif isinstance(schema, re.Pattern):
        expect(isinstance(value, str) and schema.match(value), f"{where} is {value!r}, wanted {schema.pattern}")
    elif isinstance(schema, type):
        expect(type(value) is schema, f"{where} is {value!r}, wanted {schema.__name__}")
    else:
        expect(value == schema, f"{where} is {value!r}, wanted {schema!r}")


documents = list(yaml.safe_load_all((deploy / "kubernetes.yaml").read_text()))
found = {}
for document in documents:
    key = (document.get("apiVersion"), document.get("kind"))
    expect(key in SCHEMAS, f"{key} is not known")
    if key in SCHEMAS:
        check(document, SCHEMAS[key], document["kind"])
        found[key[1]] = document
expect(set(found) == {"Deployment", "Service", "InferencePool"}, f"the manifest holds {sorted(found)}")

if all_held():
    spec = found["Deployment"]["spec"]
    pod = spec["template"]
    (container,) = pod["spec"]["containers"]
    args = container["args"]
    labels = pod["metadata"]["labels"].items()
    for what, selector in (("Deployment", spec["selector"]["matchLabels"]), ("Service", found["Service"]["spec"]["selector"]),
                           ("InferencePool", found["InferencePool"]["spec"]["selector"]["matchLabels"])):
        expect(selector.items() <= labels, f"{what} selects {selector}, the pods have {dict(labels)}")
    serving = int(args[args.index("--port") + 1]) if "--port" in args else port
    (declared,) = container["ports"]
    expect(declared == {"name": "http", "containerPort": serving}, f"the container's port is {declared}, the server's {serving}")
    expect(pod["metadata"]["annotations"]["prometheus.io/port"] == str(serving), "the port to scrape")
    expect(found["InferencePool"]["spec"]["targetPorts"] == [{"number": serving}], "the pool's port")
    expect(args[args.index("--host") + 1] == "0.0.0.0", "a server in a pod listens on all addresses")
    expect({arg for arg in args if arg.startswith("--")} <= flags, f"flags that the program does not have: {args}")
    drain = int(args[args.index("--drain-seconds") + 1])
    expect(pod["spec"]["terminationGracePeriodSeconds"] > drain, "a pod must live longer than it drains")
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    expect(set(mounts) == volumes and args[0] in mounts.values(), "the model's volume is mounted where the server looks")

container_file = (deploy / "Containerfile").read_text()
expect(f"EXPOSE {port}\n" in container_file, "the container file exposes the default port")
expect('ENTRYPOINT ["polar", "serve"]' in container_file, "the container's entry point")
expect(set(re.findall(r"--[a-z-]+", container_file.split("ENTRYPOINT")[1])) <= flags, "the container's flags")
finish()
