package scm

import (
	"strings"

	"sallyport/ntstatus"
)

// startOrder returns the closure of what s depends on, each after what it needs, s last. Statuses: SERVICE_DEPENDENCY_DELETED,
// CIRCULAR_DEPENDENCY (naming the path).
func (m *Machine) startOrder(s *Service) ([]*Service, error) {
	var order []*Service
	done := map[string]bool{}
	var path []string
	var visit func(*Service) error
	visit = func(s *Service) error {
		if done[s.Key] {
			return nil
		}
		for i, p := range path {
			if Fold(p) == s.Key {
				cycle := strings.Join(append(path[i:len(path):len(path)], s.Config.Name), " -> ")
				return ntstatus.Errorf("scm.Depend", s.Config.Name, ntstatus.CircularDependency, "%s", cycle)
			}
		}
		path = append(path, s.Config.Name)
		for _, name := range s.Config.Dependencies {
			dep, ok := m.Get(name)
			if !ok {
				return ntstatus.Errorf("scm.Depend", s.Config.Name, ntstatus.ServiceDependencyDeleted, "there is no service %s", name)
			}
			if err := visit(dep); err != nil {
				return err
			}
		}
		path = path[:len(path)-1]
		done[s.Key] = true
		order = append(order, s)
		return nil
	}
	err := visit(s)
	return order, err
}

// CheckDependencies says whether a service of that name may depend on those: CIRCULAR_DEPENDENCY names the path. A service that
// does not exist yet is no error; one may be created before what it needs.
func (m *Machine) CheckDependencies(name string, dependencies []string) error {
	key := Fold(name)
	seen := map[string]bool{}
	var visit func(names, path []string) error
	visit = func(names, path []string) error {
		for _, n := range names {
			path := append(path[:len(path):len(path)], n)
			if Fold(n) == key {
				return ntstatus.Errorf("scm.Depend", name, ntstatus.CircularDependency, "%s", strings.Join(path, " -> "))
			}
			if dep, ok := m.Get(n); ok && !seen[dep.Key] {
				seen[dep.Key] = true
				if err := visit(dep.Config.Dependencies, path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return visit(dependencies, []string{name})
}

// Dependents returns what depends on s, directly or not, in the order in which it must be stopped: each before what it needs.
func (m *Machine) Dependents(s *Service) []*Service {
	var order []*Service
	done := map[string]bool{s.Key: true}
	var visit func(*Service)
	visit = func(s *Service) {
		for _, d := range m.All() {
			if !done[d.Key] && dependsOn(d, s) {
				done[d.Key] = true
				visit(d)
				order = append(order, d)
			}
		}
	}
	visit(s)
	return order
}

func dependsOn(d, s *Service) bool {
	for _, name := range d.Config.Dependencies {
		if Fold(name) == s.Key {
			return true
		}
	}
	return false
}

// active keeps those that do not stand in STOPPED.
func (m *Machine) active(all []*Service) []*Service {
	var out []*Service
	for _, s := range all {
		if s.Run.State != Stopped {
			out = append(out, s)
		}
	}
	return out
}
