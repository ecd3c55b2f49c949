"""topics.yaml and the schemas as an AsyncAPI 3 document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace import __version__
from headrace.config import Settings
from headrace.stream import schemas, topics, topology
from headrace.stream.topology import Group, Topic, Topology

_HEADERS: dict[str, Any] = {
    "RawHeaders": {
        "type": "object",
        "description": "CloudEvents 1.0 in binary mode.",
        "properties": {
            "ce_specversion": {"const": "1.0"},
            "ce_id": {"type": "string", "description": "File and row."},
            "ce_source": {"type": "string", "description": "/runs/<run>"},
            "ce_type": {"type": "string", "description": "headrace.raw.post.v1, …"},
        },
        "required": ["ce_specversion", "ce_id", "ce_source", "ce_type"],
    },
    "Lineage": {
        "type": "object",
        "description": "Where a message comes from, packed in one header.",
        "properties": {
            "hr": {
                "type": "string",
                "description": "revision;run;rank of the input;own rank;parts;input, where revision"
                " is topic id:partition:offset:append time and input topic:partition:offset",
            },
            "traceparent": {"type": "string", "description": "Only if one came."},
        },
        "required": ["hr"],
    },
    "DeadLetterHeaders": {
        "type": "object",
        "description": "Kafka Connect's headers, beside those of the original message.",
        "properties": {
            f"__connect.errors.{name}": {"type": "string"}
            for name in (
                "topic",
                "partition",
                "offset",
                "connector.name",
                "exception.class.name",
                "exception.message",
                "stage",
            )
        },
        "required": ["__connect.errors.topic", "__connect.errors.exception.message"],
    },
}


def build(settings: Settings) -> dict[str, Any]:
    """The document: one channel a topic of topics.yaml (templates stay templates), one message a
    schema, one operation for each group and channel it reads or writes."""
    map_ = topology.load(settings)
    by_template: dict[str, list[Topic]] = {}
    for topic in map_.topics.values():
        by_template.setdefault(topic.template, []).append(topic)
    used = sorted({topic.schema for topic in map_.topics.values() if topic.schema})
    hosts = settings.kafka.bootstrap_servers or "127.0.0.1"
    protocol = "kafka" if settings.kafka.security_protocol == "PLAINTEXT" else "kafka-secure"
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Headrace, project {map_.project}",
            "version": __version__,
            "description": "Raw text records on Kafka, enriched by independent consumer groups.",
        },
        "defaultContentType": "application/json",
        "servers": {
            f"kafka{number}": {"host": host.strip(), "protocol": protocol}
            for number, host in enumerate(hosts.split(","), 1)
        },
        "channels": {
            _id(template): _channel(map_, template, topics_)
            for template, topics_ in by_template.items()
        },
        "operations": dict(_operations(map_, by_template)),
        "components": {
            "messages": {
                **{name: _message(settings, name) for name in used},
                **_BYTES,
            },
            "schemas": {
                **{name: _schema(schemas.load(settings, name)) for name in used},
                **_HEADERS,
            },
        },
    }


_BYTES: dict[str, Any] = {
    "original": {
        "title": "Original message",
        "description": "Key and value of another topic, byte by byte.",
        "contentType": "application/octet-stream",
        "headers": {"$ref": "#/components/schemas/Lineage"},
    },
    "dead_letter": {
        "title": "Dead letter",
        "description": "Original key, value and headers, with the reason.",
        "contentType": "application/octet-stream",
        "headers": {"$ref": "#/components/schemas/DeadLetterHeaders"},
    },
    "entry": {
        "title": "Entry of a table",
        "description": "What a group keeps for itself, by key; without a value it is taken out.",
        "contentType": "application/octet-stream",
    },
}


def _id(template: str) -> str:
    return template.replace("{", "").replace("}", "").replace(".", "_")


def _message_name(topic: Topic) -> str:
    if topic.schema:
        return topic.schema
    if topic.short.endswith(".table"):
        return "entry"
    return "dead_letter" if topic.short.endswith(".dlt") else "original"


def _channel(map_: Topology, template: str, found: list[Topic]) -> dict[str, Any]:
    topic = found[0]
    name = _message_name(topic)
    channel: dict[str, Any] = {
        "address": f"{map_.project}.{template}",
        "title": template,
        "description": f"{topic.description} Key: {topic.key}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {
            "kafka": {
                "partitions": topic.partitions,
                "topicConfiguration": {
                    "cleanup.policy": [topic.cleanup],
                    "retention.ms": topic.retention_ms,
                    "max.message.bytes": topic.max_message_bytes,
                },
                "x-message.timestamp.type": topics.config(topic)[topics.TIMESTAMPS],
                "bindingVersion": "0.5.0",
            }
        },
    }
    if template != topic.short:
        start, _, rest = template.partition("{")
        parameter, _, end = rest.partition("}")
        values = [other.short.removeprefix(start).removesuffix(end) for other in found]
        channel["parameters"] = {parameter: {"enum": values}}
    return channel


def _operations(
    map_: Topology, by_template: dict[str, list[Topic]]
) -> Iterable[tuple[str, dict[str, Any]]]:
    for template, found in by_template.items():
        if found[0].is_raw or template == "runs":
            yield f"publish_{_id(template)}", _operation("send", template, found[0], "publish")
    for group in map_.groups.values():
        read: dict[str, Topic] = {topic.template: topic for topic in (*group.reads, group.redo)}
        for template, topic in read.items():
            operation = _operation("receive", template, topic, group.description)
            operation["bindings"] = {"kafka": _group_binding(group)}
            yield f"{group.short}_reads_{_id(template)}", operation
        written = {topic.template: topic for topic in group.outputs}
        status = map_.topics.get("status") if group.kind == "stage" else None
        written |= {topic.template: topic for topic in (group.dlt, status) if topic is not None}
        for topic in written.values():
            yield (
                f"{group.short}_writes_{_id(topic.template)}",
                _operation("send", topic.template, topic, group.description),
            )

    for app in map_.apps.values():
        for topic in app.reads:
            operation = _operation("receive", topic.template, topic, app.description)
            group_id = {"type": "string", "enum": [app.name]}
            operation["bindings"] = {"kafka": {"groupId": group_id, "bindingVersion": "0.5.0"}}
            yield f"{app.short}_reads_{_id(topic.template)}", operation


def _operation(action: str, template: str, topic: Topic, summary: str) -> dict[str, Any]:
    channel = f"#/channels/{_id(template)}"
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{_message_name(topic)}"}],
    }


def _group_binding(group: Group) -> dict[str, Any]:
    return {
        "groupId": {"type": "string", "enum": [group.name]},
        "x-batch-records": group.batch.records,
        "x-when": group.when.text,
        "bindingVersion": "0.5.0",
    }


def _message(settings: Settings, name: str) -> dict[str, Any]:
    schema = schemas.load(settings, name)
    message: dict[str, Any] = {
        "name": name,
        "title": schema.get("title", name),
        "summary": schema.get("description", ""),
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "examples": [{"payload": example} for example in schema.get("examples", [])],
    }
    if name.startswith("raw_"):
        message["headers"] = {"$ref": "#/components/schemas/RawHeaders"}
    elif name.startswith("enriched_"):
        message["headers"] = {"$ref": "#/components/schemas/Lineage"}
    return message


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("$schema", "$id")}
