"""Order a queue of four requests under several policies, without an engine."""

from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.facts import new_facts
from lengthwise.policy.prepass import StepOrder
from lengthwise.request import WAITING, new_table

queue = [(0.0, 400), (40.0, 25), (60.0, 150), (79.0, 10)]  # arrival in s, expected tokens

table = new_table(len(queue))
for row, (arrival_s, expected) in enumerate(queue):
    request = table[row]
    request["state"] = WAITING
    request["sequence"] = request["arrival_index"] = row
    request["arrival_s"] = arrival_s
    request["expected"] = request["remaining"] = expected

facts = new_facts(1, token_budget=2048, block_size=16)  # of one engine
facts["rows"], facts["now_s"], facts["step"] = len(queue), 80.0, 1

for name in ("fcfs", "sjf", "hrrn"):
    order, discipline = StepOrder(), make_discipline(name)
    order.rank(discipline, table, facts)
    print(f"{name:5}", order.first(discipline, table, count=len(queue), want=len(queue)))
