#!/bin/bash
# next.sh FOLDER: prints how to run a program of one's own on the cluster in this folder.
cat << EOF
export PATH=$1/bin:\$PATH
skiff pack app.wasm -o app.tar && image=\$(push app.tar mine/app:1)
kubectl delete pod app --ignore-not-found
kubectl run app --image=\$image --overrides='{"spec": {"runtimeClassName": "skiff"}}'
kubectl wait --for=condition=Ready pod/app --timeout=5m
in-net curl "http://\$(kubectl get pod app -o 'jsonpath={.status.podIP}'):8080/"
EOF
