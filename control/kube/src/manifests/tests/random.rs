//! However a directory came to be what it is, it says the same: what changes add up to is what a first look gives.

use super::*;

/// xorshift: a failure is played again by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn document(dice: &mut Dice) -> String {
    let n = dice.roll(5);
    let meta = format!("metadata: {{namespace: n{}, name: x{n}}}", dice.roll(2));
    let label = format!("{{app: l{}}}", dice.roll(3));
    let pod = |more: &str| {
        format!(
            "{{containers: [{{name: c, image: i, ports: [{{name: web, containerPort: {}}}]}}]{more}}}",
            80 + n
        )
    };
    let node = ["", ", nodeName: here", ", nodeName: there", ", hostNetwork: true"][dice.roll(4) as usize];
    match dice.roll(9) {
        0 | 1 => format!(
            "apiVersion: v1\nkind: Pod\n{}\nspec: {}\n",
            meta.replace('}', &format!(", labels: {label}}}")),
            pod(node)
        ),
        2 | 3 => {
            let kind = ["Deployment", "StatefulSet", "DaemonSet"][dice.roll(3) as usize];
            let replicas =
                if kind == "DaemonSet" { String::new() } else { format!("replicas: {}, ", dice.roll(4)) };
            format!(
                "apiVersion: apps/v1\nkind: {kind}\n{meta}\nspec: {{selector: {{matchLabels: {label}}}, {replicas}template: {{metadata: {{labels: {label}}}, spec: {}}}}}\n",
                pod(node)
            )
        }
        4 | 5 => {
            let kind = ["ClusterIP", "NodePort"][dice.roll(2) as usize];
            format!(
                "apiVersion: v1\nkind: Service\n{meta}\nspec: {{type: {kind}, selector: {label}, ports: [{{port: {}, targetPort: web}}]}}\n",
                80 + n
            )
        }
        6 => format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n{}\nendpoints: []\n",
            meta.replace('}', &format!(", labels: {{kubernetes.io/service-name: x{}}}}}", dice.roll(5)))
        ),
        7 => format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n{}, labels: {label}}}\n",
            dice.roll(2)
        ),
        _ => format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{meta}\nspec: {{podSelector: {{matchLabels: {label}}}}}\n"
        ),
    }
}

#[test]
fn a_thousand_edits_add_up_to_what_a_first_look_gives() {
    for seed in 1..=10 {
        let mut dice = Dice(seed * 0x9e37_79b9);
        let mut bed = Bed::new();
        for step in 0..100 {
            let file = format!("f{}.yaml", dice.roll(4));
            let documents: Vec<_> = (0..dice.roll(4)).map(|_| document(&mut dice)).collect();
            if documents.is_empty() {
                let _ = std::fs::remove_file(bed.path(&file));
                bed.scan();
            } else {
                bed.write(&file, &documents.join("---\n"));
            }
            let mut fresh = Directory::new(bed.root.path(), &placement(), &bed.directory.allocations());
            let batch = fresh.scan();
            let grown = std::mem::take(&mut bed.objects);
            bed.take(batch);
            let at_once = std::mem::replace(&mut bed.objects, grown);
            for (id, object) in &at_once {
                let grown = format!("{:#?}", bed.objects.get(id));
                assert_eq!(grown, format!("{:#?}", Some(object)), "seed {seed}, step {step}: {id}");
            }
            assert_eq!(bed.objects.len(), at_once.len(), "seed {seed}, step {step}");
        }
    }
}
