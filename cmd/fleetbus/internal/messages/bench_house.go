//go:build !lean

package messages

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/bench"
)

// benchVerbs are what measures this project, for those who work on it.
func benchVerbs(a *command.App) []*cobra.Command {
	return []*cobra.Command{newBenchHouseCommand(a), newBenchMQTTCommand(a), newBenchAMQPCommand(a), newBenchCertificatesCommand(a), newBenchScaleCommand(a)}
}

// newBenchHouseCommand makes the command that looks at the project itself.
func newBenchHouseCommand(a *command.App) *cobra.Command {
	return measures(a, bench.House, &cobra.Command{
		Use:   "house",
		Short: "Measure what this project promises",
		Long: `Build this program and the bare engine, run three nodes of each side by side
with the same kind of certificates, accounts and streams, and measure both in
turn; then what else is promised of speed and size. It needs Go and runs in the
source tree. A target that is missed is no failure.`,
	})
}

// newBenchMQTTCommand is beside bench house: the same, of MQTT.
func newBenchMQTTCommand(a *command.App) *cobra.Command {
	return measures(a, bench.MQTT, &cobra.Command{
		Use:   "mqtt",
		Short: "Measure what this project promises of MQTT",
		Long: `Build this program and the bare engine, and measure the MQTT of both and of
mosquitto, where it is installed, with the same client. It needs Go and runs in
the source tree. A target that is missed is no failure.`,
	})
}

// newBenchAMQPCommand is beside bench house: the same, of AMQP.
func newBenchAMQPCommand(a *command.App) *cobra.Command {
	return measures(a, bench.AMQP, &cobra.Command{
		Use:   "amqp",
		Short: "Measure what this project promises of AMQP",
		Long: `Build this program, and measure its AMQP and that of RabbitMQ, which has to be
installed, with the same client. It needs Go and runs in the source tree. A target
that is missed is no failure.`,
	})
}

// newBenchCertificatesCommand is beside bench house: the same, of certificates.
func newBenchCertificatesCommand(a *command.App) *cobra.Command {
	return measures(a, bench.Certificates, &cobra.Command{
		Use:   "certificates",
		Short: "Measure what this project promises of certificates",
		Long: `Build this program, run nodes of it, and measure how certificates are found,
delivered, kept and renewed. It needs Go and runs in the source tree. A target
that is missed is no failure.`,
	})
}

// newBenchScaleCommand is beside bench house: the same, of very many clients.
func newBenchScaleCommand(a *command.App) *cobra.Command {
	return measures(a, bench.Scale, &cobra.Command{
		Use:   "scale",
		Short: "Measure how many clients a node holds, and how they come back",
		Long: `Build this program and the bare engine, and connect very many clients, each with
a key, a JWT and a certificate of its own, to a node of each. Then tell all of
them something, and kill the node, so that all come to two others. It needs Go
and runs in the source tree, and a process has to have a file for each client:
with a lower limit more nodes share them. 50000 clients take 10 GiB of memory
and half an hour. A target that is missed is no failure.`,
		Example: `  fleetbus bench scale --clients 1000 --quick
  fleetbus bench scale`,
	}, func(flags *pflag.FlagSet, o *bench.Options) {
		flags.IntVar(&o.Clients, "clients", bench.ScaleClients, "clients, in all")
		flags.BoolVar(&o.Alone, "alone", false, "without the bare engine beside it")
	})
}

// measures makes cmd do what measure does, and show the figures. It has more flags than
// all have.
func measures(a *command.App, measure func(context.Context, bench.Options) (bench.Report, error), cmd *cobra.Command, more ...func(*pflag.FlagSet, *bench.Options)) *cobra.Command {
	o := bench.Options{Env: a.Env, Progress: a.Hint}
	cmd.Args, cmd.Annotations, cmd.Hidden = command.Takes(), command.Reads(), true
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		figures, err := measure(cmd.Context(), o)
		return showFigures(a, figures, err)
	}
	cmd.Flags().BoolVar(&o.Quick, "quick", false, "do everything once, which is not enough for figures to rely on")
	cmd.Flags().StringVar(&o.Only, "only", "", "measure only what has this in its name, such as idle")
	for _, add := range more {
		add(cmd.Flags(), &o)
	}
	return a.Output(cmd)
}

// showFigures shows what was measured, whatever else failed.
func showFigures(a *command.App, r bench.Report, err error) error {
	if errors.Is(err, bench.ErrNotBuilt) {
		return command.Fail(command.ExitFailed, "run it in the source tree, with Go installed", "%v", err)
	}
	if len(r.Conditions) == 0 {
		return err
	}
	return errors.Join(err, a.Show(command.Report{Value: r, Text: func(p *command.Page) {
		command.Table(p, r.Figures,
			command.Col("FIGURE", func(f bench.Figure) string { return f.Name }),
			command.Col("OURS", func(f bench.Figure) string { return strings.TrimSpace(bench.Significant(f.Ours) + " " + f.Unit) }),
			command.Col("PEER", func(f bench.Figure) string { return formatFigure(f.Peer) }),
			command.Col("RATIO", func(f bench.Figure) string { return formatFigure(f.Ratio) }),
			command.Col("SPREAD", func(f bench.Figure) string {
				if len(f.Spread) == 0 {
					return ""
				}
				return bench.Significant(f.Spread[0]) + " to " + bench.Significant(f.Spread[1])
			}),
			command.Col("TARGET", func(f bench.Figure) string { return f.Target }),
			command.Col("VERDICT", func(f bench.Figure) string { return f.Verdict }))
		showConditions(p, r.Conditions)
	}}))
}

// formatFigure writes a figure, and nothing for 0.
func formatFigure(f float64) string {
	if f == 0 {
		return ""
	}
	return bench.Significant(f)
}
